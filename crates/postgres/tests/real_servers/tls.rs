//! TLS as libpq does it, with an authority of our own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use leeward_postgres::Error;

use crate::cluster::{Cluster, DEADLINE, usual, value};
use crate::connecting::{connect, connect_with};

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn modes_authorities_and_channel_binding() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut cluster = Cluster::prepare(usual(), "password_encryption = 'scram-sha-256'", port);
    let directory = cluster.directory.path().to_owned();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        &directory,
        &format!("req -x509 {key} -subj /CN=authority -days 2 -keyout ca.key -out ca.crt"),
    );
    openssl(
        &directory,
        &format!("req {key} -subj /CN=localhost -keyout server.key -out server.csr"),
    );
    openssl(
        &directory,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out server.crt",
    );
    let data_directory = cluster.primary.data_directory().to_owned();
    // Copied over existing files of the server's user, so that they belong to it.
    for file in ["server.crt", "server.key"] {
        let owner = std::fs::metadata(&data_directory).unwrap();
        let to = data_directory.join(file);
        std::fs::copy(directory.join(file), &to).unwrap();
        std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    std::fs::write(
        data_directory.join("pg_hba.conf"),
        "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    cluster
        .primary
        .start_with(
            &[("ssl", "on"), ("listen_addresses", "127.0.0.1")],
            DEADLINE,
        )
        .unwrap();
    let socket = cluster.primary.socket_directory().display();
    let mut admin = connect(&format!("host={socket} port={port} user=postgres")).unwrap();
    admin
        .execute("CREATE ROLE alice LOGIN PASSWORD 'Right-Horse7'")
        .unwrap();

    let base = format!("port={port} user=alice password=Right-Horse7 hostaddr=127.0.0.1");
    let ca = directory.join("ca.crt").display().to_string();
    let mut session = connect(&format!("{base} sslmode=require channel_binding=require")).unwrap();
    assert!(session.uses_tls());
    assert_eq!(
        value(
            &mut session,
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ),
        "t"
    );
    connect(&format!(
        "{base} host=localhost sslmode=verify-full sslrootcert={ca}"
    ))
    .unwrap();
    connect(&format!(
        "{base} host=elsewhere sslmode=verify-ca sslrootcert={ca}"
    ))
    .unwrap();

    for refused in [
        format!("{base} host=elsewhere sslmode=verify-full sslrootcert={ca}"),
        format!("{base} host=localhost sslmode=verify-full sslrootcert=system"),
        format!("{base} host=localhost sslmode=verify-full sslrootcert=/nonexistent"),
        format!("{base} sslmode=disable"),
    ] {
        let error = connect(&refused).map(|_| ()).unwrap_err();
        assert!(
            matches!(error, Error::ConnectFailed(_)),
            "{refused}: {error:?}"
        );
        assert!(!format!("{error} {error:?}").contains("Horse"), "{error:?}");
    }

    // "system" means the system's authorities, which SSL_CERT_FILE names for a process.
    let by_system = format!("{base} host=localhost sslrootcert=system");
    assert!(connect_with(&[("SSL_CERT_FILE", &ca)], &by_system).is_ok());
    let refused = connect_with(&[], &by_system).unwrap_err();
    assert!(refused.contains("certificate verify failed"), "{refused}");
}
