//! TLS before a server on loopback, with certificates made on the spot by `openssl`.

use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use crate::faults::Connection;

/// A certificate authority and a certificate for `127.0.0.1` that it has signed.
#[derive(Debug)]
pub struct TlsFront {
    folder: TempDir,
    config: Arc<ServerConfig>,
}

impl TlsFront {
    /// Makes keys and certificates.
    pub fn new() -> TlsFront {
        let folder = tempfile::tempdir().expect("a directory for certificates");
        let key_type = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ];
        openssl(folder.path(), |command| {
            command
                .args([
                    "req",
                    "-x509",
                    "-subj",
                    "/CN=Leeward test authority",
                    "-keyout",
                    "ca.key",
                    "-out",
                    "ca.pem",
                ])
                .args(key_type)
        });
        openssl(folder.path(), |command| {
            command
                .args([
                    "req",
                    "-x509",
                    "-subj",
                    "/CN=127.0.0.1",
                    "-keyout",
                    "server.key",
                    "-out",
                    "server.pem",
                ])
                .args(["-CA", "ca.pem", "-CAkey", "ca.key"])
                .args([
                    "-addext",
                    "subjectAltName=IP:127.0.0.1",
                    "-addext",
                    "basicConstraints=critical,CA:FALSE",
                ])
                .args(key_type)
        });
        let certificate = CertificateDer::from_pem_file(folder.path().join("server.pem"))
            .expect("the certificate is read");
        let key = PrivateKeyDer::from_pem_file(folder.path().join("server.key"))
            .expect("the key is read");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the usual protocol versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("key and certificate belong together");
        TlsFront {
            folder,
            config: Arc::new(config),
        }
    }

    /// A file with the authority's certificate, for clients to trust.
    pub fn ca_certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(crate) fn accept(&self, client: TcpStream) -> io::Result<Box<dyn Connection>> {
        let connection = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(connection, client)))
    }
}

impl Default for TlsFront {
    fn default() -> TlsFront {
        TlsFront::new()
    }
}

fn openssl(folder: &Path, arguments: impl FnOnce(&mut Command) -> &mut Command) {
    let mut command = Command::new("openssl");
    let output = arguments(command.current_dir(folder).stdin(Stdio::null()))
        .output()
        .expect("openssl is installed");
    assert!(
        output.status.success(),
        "openssl failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
