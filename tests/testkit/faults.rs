//! A proxy on loopback before an HTTP server, which loses, delays and falsifies what a test tells it to.
//!
//! It understands just enough HTTP/1.1 to judge each request by itself on connections that carry many. What it does
//! to a request depends on the request and on how often the same one came before, never on timing: the same seed
//! gives the same faults.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::tls::TlsFront;

/// A connection, in the clear or not.
pub(crate) trait Connection: Read + Write + Send {}

impl<T: Read + Write + Send> Connection for T {}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The server never sees it; the answer is 503 Slow Down.
    Unavailable,
    /// The server does it; the answer is 503 all the same.
    UnavailableAfterEffect,
    /// The server never sees it; the connection breaks.
    CutBefore,
    /// The server does it; the connection breaks without an answer.
    CutAfterEffect,
    /// The answer breaks off in the middle of its body.
    CutBody,
    /// The server does it, and no answer ever comes.
    Stall,
    /// The answer's body comes with one bit flipped in its middle.
    FlipBit,
}

/// A request as a script judges it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `PUT`, ...
    pub method: String,
    /// Path and query.
    pub target: String,
    /// How often the same method came with the same target before.
    pub repetition: u64,
    /// How many requests came before, whichever.
    pub number: u64,
}

type Script = Box<dyn FnMut(&Request) -> Fault + Send>;

/// A running proxy. Its threads end with the process; dropped, it takes no further connections.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    tls: Option<TlsFront>,
    upstream: SocketAddr,
    script: Mutex<Script>,
    seen: Mutex<HashMap<(String, String), u64>>,
    requests: AtomicU64,
    injected: AtomicU64,
    closed: AtomicBool,
}

impl FaultProxy {
    /// Starts a proxy that does no harm yet.
    pub fn start(upstream: SocketAddr) -> FaultProxy {
        FaultProxy::start_with(upstream, None)
    }

    /// Starts a proxy that speaks TLS to its clients, and does no harm yet.
    pub fn start_tls(upstream: SocketAddr, tls: TlsFront) -> FaultProxy {
        FaultProxy::start_with(upstream, Some(tls))
    }

    fn start_with(upstream: SocketAddr, tls: Option<TlsFront>) -> FaultProxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port for the proxy");
        let address = listener.local_addr().expect("the proxy's address");
        let shared = Arc::new(Shared {
            tls,
            upstream,
            script: Mutex::new(Box::new(|_| Fault::None)),
            seen: Mutex::default(),
            requests: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.closed.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(client) = client else { continue };
                let shared = accepting.clone();
                // A broken connection is what this is for.
                thread::spawn(move || drop(serve(&shared, client)));
            }
        });
        FaultProxy { address, shared }
    }

    /// Its endpoint URL.
    pub fn endpoint(&self) -> String {
        let scheme = if self.shared.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// From now on, `script` decides about each request.
    pub fn set(&self, script: impl FnMut(&Request) -> Fault + Send + 'static) {
        *lock(&self.shared.script) = Box::new(script);
    }

    /// From now on, about `percent` of the requests meet one of `faults`, the same ones for the same seed. A request
    /// that comes again after four faults is let through.
    pub fn set_random(&self, seed: u64, percent: u64, faults: &'static [Fault]) {
        self.set(move |request| {
            let dice = mix(seed, request);
            if request.repetition < 4 && dice % 100 < percent {
                faults[usize::try_from(dice / 100).expect("64 bits") % faults.len()]
            } else {
                Fault::None
            }
        });
    }

    /// How many requests came so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many of them met a fault.
    pub fn injected(&self) -> u64 {
        self.shared.injected.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl std::fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "FaultProxy({} -> {})",
            self.address, self.shared.upstream
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// FNV-1a over what identifies a request, then a finaliser that spreads its low bits.
fn mix(seed: u64, request: &Request) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let repetition = request.repetition.to_le_bytes();
    // Upload ids differ from run to run.
    let target = request.target.split("uploadId=").next().unwrap_or_default();
    for byte in request
        .method
        .bytes()
        .chain(target.bytes())
        .chain(repetition)
    {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    fn first_line(&self) -> String {
        let line = self
            .head
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        String::from_utf8_lossy(line).into_owned()
    }

    fn header(&self, name: &str) -> Option<String> {
        String::from_utf8_lossy(&self.head)
            .lines()
            .find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found
                    .eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
    }
}

fn serve(shared: &Shared, client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let client: Box<dyn Connection> = match &shared.tls {
        Some(tls) => tls.accept(client)?,
        None => Box::new(client),
    };
    let mut client = BufReader::new(client);
    let upstream = TcpStream::connect(shared.upstream)?;
    upstream.set_nodelay(true)?;
    let mut to_server = upstream.try_clone()?;
    let mut from_server = BufReader::new(upstream);
    while let Some(mut request) = read_message(&mut client, true)? {
        let line = request.first_line();
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default().to_owned();
        let repetition = {
            let mut seen = lock(&shared.seen);
            let count = seen.entry((method.clone(), target.clone())).or_default();
            *count += 1;
            *count - 1
        };
        let number = shared.requests.fetch_add(1, Ordering::Relaxed);
        let is_head = method == "HEAD";
        let fault = (lock(&shared.script))(&Request {
            method,
            target,
            repetition,
            number,
        });
        if fault != Fault::None {
            shared.injected.fetch_add(1, Ordering::Relaxed);
        }
        match fault {
            Fault::Unavailable => {
                slow_down(client.get_mut())?;
                continue;
            }
            Fault::CutBefore => return Ok(()),
            _ => {}
        }
        // A server that refuses a body answers before it has read it, and hangs up.
        let sent = to_server
            .write_all(&request.head)
            .and_then(|()| to_server.write_all(&request.body));
        request.body = Vec::new();
        let Some(mut answer) = read_message(&mut from_server, !is_head)? else {
            return Ok(());
        };
        match fault {
            Fault::UnavailableAfterEffect => slow_down(client.get_mut())?,
            Fault::CutAfterEffect => return Ok(()),
            Fault::CutBody => {
                client.get_mut().write_all(&answer.head)?;
                client
                    .get_mut()
                    .write_all(&answer.body[..answer.body.len() / 2])?;
                return Ok(());
            }
            Fault::Stall => {
                // Until the client hangs up.
                io::copy(&mut client, &mut io::sink())?;
                return Ok(());
            }
            _ => {
                if fault == Fault::FlipBit
                    && let Some(byte) = {
                        let middle = answer.body.len() / 2;
                        answer.body.get_mut(middle)
                    }
                {
                    *byte ^= 1;
                }
                client.get_mut().write_all(&answer.head)?;
                client.get_mut().write_all(&answer.body)?;
            }
        }
        sent?;
    }
    Ok(())
}

fn slow_down(client: &mut dyn Write) -> io::Result<()> {
    let body = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    write!(
        client,
        "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    client.flush()
}

/// Reads one request or answer to its end; `None` when the connection ended before it.
fn read_message(from: &mut dyn BufRead, has_body: bool) -> io::Result<Option<Message>> {
    let mut message = Message {
        head: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let before = message.head.len();
        from.read_until(b'\n', &mut message.head)?;
        if message.head.len() == before {
            return Ok(None);
        }
        if &message.head[before..] == b"\r\n" {
            break;
        }
    }
    if !has_body {
        return Ok(Some(message));
    }
    if let Some(length) = message.header("content-length") {
        let length: u64 = length.parse().map_err(io::Error::other)?;
        Read::take(&mut *from, length).read_to_end(&mut message.body)?;
    } else if message
        .header("transfer-encoding")
        .is_some_and(|coding| coding.contains("chunked"))
    {
        // Kept as it came, chunk heads and all.
        loop {
            let begin = message.body.len();
            from.read_until(b'\n', &mut message.body)?;
            let size = String::from_utf8_lossy(&message.body[begin..])
                .trim()
                .to_owned();
            let size = u64::from_str_radix(size.split(';').next().unwrap_or_default(), 16)
                .map_err(io::Error::other)?;
            Read::take(&mut *from, size + 2).read_to_end(&mut message.body)?;
            if size == 0 {
                break;
            }
        }
    }
    Ok(Some(message))
}
