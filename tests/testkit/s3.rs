//! A real S3 server (`s3s-fs`) on loopback, with one bucket in a directory of its own.
//!
//! It checks signatures and knows ranges, multipart uploads and conditional writes. It is *not* a judge of racing
//! conditional writes: several of them may win. Races are tested on the local store.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::deadline::{PATIENCE, reached};
use crate::installation::work_dir;

/// The one bucket.
pub const BUCKET: &str = "leeward-test";
/// The access key that the server knows.
pub const ACCESS_KEY_ID: &str = "leeward";
/// The secret that goes with it.
pub const SECRET_ACCESS_KEY: &str = "leewardsecret";
/// The region that requests are signed for.
pub const REGION: &str = "us-east-1";

/// A running server; killed when dropped, its bucket removed.
#[derive(Debug)]
pub struct S3Server {
    process: Child,
    address: SocketAddr,
    root: TempDir,
}

impl S3Server {
    /// Starts a server on a free port. Panics where it is not installed, with the command that installs it.
    pub fn start() -> S3Server {
        let program = program();
        let root = tempfile::Builder::new()
            .prefix("leeward-s3-")
            .tempdir()
            .expect("a directory for the bucket");
        std::fs::create_dir(root.path().join(BUCKET)).expect("the bucket's directory is created");
        // Another process may take the port between our look and the server's, so try a few.
        for _ in 0..20 {
            let address = free_address();
            let mut process = Command::new(&program)
                .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
                .args([
                    "--access-key",
                    ACCESS_KEY_ID,
                    "--secret-key",
                    SECRET_ACCESS_KEY,
                ])
                .arg(root.path())
                .env("RUST_LOG", "off")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("could not start {}: {error}", program.display()));
            let mut ended = false;
            let up = reached(PATIENCE, || {
                ended = process.try_wait().is_ok_and(|status| status.is_some());
                ended || TcpStream::connect(address).is_ok()
            });
            if up && !ended {
                return S3Server {
                    process,
                    address,
                    root,
                };
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!(
            "could not start an S3 server: {} always ends",
            program.display()
        );
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its endpoint URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL of a repository in its bucket.
    pub fn repository(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The files of the bucket, to look at and to damage.
    pub fn bucket_dir(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The environment by which a client finds the server at an endpoint, which may be a proxy before it.
pub fn environment(endpoint: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()),
        ("AWS_REGION", REGION.to_owned()),
    ]
}

/// The server's program: `LEEWARD_TEST_S3`, or the one `scripts/test` installs.
fn program() -> PathBuf {
    let path = std::env::var_os("LEEWARD_TEST_S3")
        .map_or_else(|| work_dir().join("s3/bin/s3s-fs"), PathBuf::from);
    assert!(
        path.is_file(),
        "the S3 server for the tests is not installed as \"{}\"; install it with\n  \
         cargo install --locked --root .leeward-work/s3 s3s-fs --version 0.14.1 --features binary",
        path.display()
    );
    path
}

/// An address of this host that nobody listens on.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("the port's address")
}
