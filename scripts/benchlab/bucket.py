"""An S3 server on this machine, with TLS in front of it: s3s-fs keeps objects as files, nginx holds the certificate."""

import ssl
import subprocess
import time
import urllib.error
import urllib.request

from . import packages
from .machine import LOGS, WORK, BenchError, as_account, environment, folder, run

ROOT, RUN = WORK / "s3root", WORK / "run/s3"
BUCKET, REGION, ACCESS_KEY, SECRET_KEY = "bench", "us-east-1", "bench", "bench-secret"
PLAIN_PORT, TLS_PORT = 8014, 8443
CERTIFICATE, PRIVATE_KEY = RUN / "certificate.pem", RUN / "key.pem"
AUTHORITY, AUTHORITY_KEY = RUN / "authority.pem", RUN / "authority.key"
ENDPOINT = f"https://127.0.0.1:{TLS_PORT}"

NGINX_CONFIGURATION = """
worker_processes 1; daemon off; pid {run}/nginx.pid; error_log stderr warn;
events {{ worker_connections 512; }}
http {{
 access_log off; tcp_nodelay on; client_max_body_size 0; proxy_request_buffering off; proxy_buffering off;
 client_body_temp_path {run}/t1; proxy_temp_path {run}/t2; fastcgi_temp_path {run}/t3; uwsgi_temp_path {run}/t4;
 scgi_temp_path {run}/t5; keepalive_requests 1000000;
 upstream store {{ server 127.0.0.1:{plain}; keepalive 64; keepalive_requests 1000000; }}
 server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {run}/certificate.pem; ssl_certificate_key {run}/key.pem;
  location / {{ proxy_pass http://store; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; }} }}
}}
"""


class Bucket:
    """Started empty; `pids` are the server trees whose CPU is the store's, not the tool's."""

    def __init__(self):
        packages.install_s3s_fs()
        subprocess.run(["rm", "-rf", str(ROOT)], check=True)
        folder(RUN), folder(ROOT), folder(ROOT / BUCKET)
        if not CERTIFICATE.exists():
            self.make_certificates()
        (RUN / "nginx.conf").write_text(
            NGINX_CONFIGURATION.format(run=RUN, plain=PLAIN_PORT, tls=TLS_PORT))
        self.server = self.spawn([packages.S3S_FS, "--host", "127.0.0.1", "--port", PLAIN_PORT, "--access-key", ACCESS_KEY,
                                  "--secret-key", SECRET_KEY, ROOT], "s3s-fs.log")
        self.front = self.spawn([packages.NGINX, "-e", "stderr", "-p", RUN, "-c", RUN / "nginx.conf"], "nginx.log")
        deadline = time.monotonic() + 20
        while not self.answers():
            if time.monotonic() > deadline or self.server.poll() is not None or self.front.poll() is not None:
                self.close()
                raise BenchError(f"the S3 server did not come up: see {LOGS / 's3s-fs.log'} and {LOGS / 'nginx.log'}")
            time.sleep(0.1)

    @staticmethod
    def make_certificates():
        """An authority, which the tools are told to trust, and the front's certificate from it."""
        new = [packages.OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365",
               "-config", "/etc/ssl/openssl.cnf"]
        run([*new, "-subj", "/CN=bench authority", "-keyout", AUTHORITY_KEY, "-out", AUTHORITY])
        run([*new, "-subj", "/CN=127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
             "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-CA", AUTHORITY, "-CAkey", AUTHORITY_KEY,
             "-keyout", PRIVATE_KEY, "-out", CERTIFICATE])

    @staticmethod
    def spawn(argv, log):
        out = open(LOGS / log, "ab")
        return subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                env=environment(RUST_LOG="warn"), start_new_session=True, **as_account())

    @staticmethod
    def answers():
        try:
            urllib.request.urlopen(ENDPOINT, timeout=2, context=ssl._create_unverified_context())
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def pids(self):
        return {"s3": self.server.pid, "tls": self.front.pid}

    def close(self):
        for child in (self.front, self.server):
            if child.poll() is None:
                child.terminate()
                child.wait()
