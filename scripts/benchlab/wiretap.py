"""A relay on a socket of its own in front of the primary: whoever is told to reach the primary does so through it,
and its bytes are counted. Statements and connections are counted by the primary's own log."""

import os
import re
import socket
import threading


class Wiretap:
    """Relays connections from `listen` to `target` (Unix sockets) and counts the bytes of each direction."""

    def __init__(self, listen, target):
        self.target, self.to_primary, self.from_primary = str(target), 0, 0
        self.lock = threading.Lock()
        if os.path.exists(listen):
            os.remove(listen)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(listen))
        os.chmod(listen, 0o777)
        self.server.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.server.accept()
            upstream = socket.socket(socket.AF_UNIX)
            try:
                upstream.connect(self.target)
            except OSError:
                client.close()
                continue
            threading.Thread(target=self.relay, args=(client, upstream, "to_primary"), daemon=True).start()
            threading.Thread(target=self.relay, args=(upstream, client, "from_primary"), daemon=True).start()

    def relay(self, source, sink, counter):
        try:
            while data := source.recv(65536):
                with self.lock:
                    setattr(self, counter, getattr(self, counter) + len(data))
                sink.sendall(data)
        except OSError:
            pass
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class PrimaryWitness:
    """What reached the primary between `begin` and `end`: from its log, and from the relay in front of it."""

    def __init__(self, log, tap):
        self.log, self.tap = log, tap

    def begin(self):
        self.offset = os.path.getsize(self.log)
        self.bytes = (self.tap.to_primary, self.tap.from_primary)

    def end(self):
        with open(self.log, "rb") as handle:
            handle.seek(self.offset)
            text = handle.read().decode(errors="replace")
        return {
            "primary_connections": len(re.findall(r"LOG:  (?:replication )?connection authorized", text)),
            "primary_statements": len(re.findall(r"LOG:  (?:statement|execute [^:]*|received replication command)[: ]", text)),
            "primary_checkpoints": len(re.findall(r"LOG:  checkpoint starting", text)),
            "primary_bytes_in": self.tap.to_primary - self.bytes[0],
            "primary_bytes_out": self.tap.from_primary - self.bytes[1],
        }
