//! Which server is reached, and by which of libpq's conventions.

use std::process::Command;
use std::time::{Duration, Instant};

use leeward_postgres::Error;
use leeward_postgres::connection::Connection;
use leeward_postgres::target::ConnectTarget;
use leeward_postgres::throwaway::StopMode;

use crate::cluster::{Cluster, DEADLINE, usual, value};

const CHILD: &str = "LEEWARD_TEST_CHILD_CONNINFO";
const CHILD_PGDATA: &str = "LEEWARD_TEST_CHILD_PGDATA";

pub fn connect(conninfo: &str) -> Result<Connection, Error> {
    Connection::connect(&ConnectTarget {
        conninfo: Some(conninfo.to_owned()),
        ..ConnectTarget::default()
    })
}

/// Connects in a process with other environment variables (ours must not change while threads run), and gives back the
/// session's address, or the error.
pub fn connect_with(environment: &[(&str, &str)], conninfo: &str) -> Result<String, String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "connecting::in_a_child", "--nocapture"])
        .env(CHILD, conninfo);
    for (name, value) in environment {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |mark: &str| {
        text.lines()
            .find_map(|line| line.split_once(mark).map(|(_, rest)| rest.to_owned()))
    };
    match (line("connected: "), line("refused: ")) {
        (Some(address), _) => Ok(address),
        (None, Some(error)) => Err(error),
        (None, None) => panic!("the child said neither: {text}"),
    }
}

/// The other end of `connect_with`; on its own it checks that a nonsense keyword is refused.
#[test]
fn in_a_child() {
    let Ok(conninfo) = std::env::var(CHILD) else {
        assert!(matches!(
            connect("no_such_keyword=1"),
            Err(Error::InvalidConninfo { .. })
        ));
        return;
    };
    let target = ConnectTarget {
        conninfo: Some(conninfo),
        pgdata: std::env::var_os(CHILD_PGDATA).map(Into::into),
        ..ConnectTarget::default()
    };
    match Connection::connect(&target) {
        Ok(session) => println!("\nconnected: {}", session.describe()),
        Err(error) => println!("\nrefused: {error} / hint: {:?}", error.hint()),
    }
}

#[test]
fn every_way_to_name_a_server_reaches_it() {
    let cluster = Cluster::start(usual(), "");
    let host = cluster.primary.socket_directory().to_str().unwrap();
    let pgdata = cluster.primary.data_directory().to_str().unwrap();
    let address = |database: &str| format!("host={host} port=5432 dbname={database} user=postgres");
    let service_file = cluster.directory.path().join("service.conf");
    std::fs::write(
        &service_file,
        format!("[here]\nhost={host}\nport=5432\nuser=postgres\ndbname=template1\n"),
    )
    .unwrap();
    let service_file = service_file.to_str().unwrap();
    let encoded = host.replace('/', "%2F");
    let wrong_data = [
        ("PGHOST", host),
        ("PGUSER", "postgres"),
        (CHILD_PGDATA, "/nonexistent"),
    ];

    // Keywords, URIs, names; the database is "postgres" unless somebody names one.
    assert_eq!(
        connect_with(&[], &format!("host={host} user=postgres")),
        Ok(address("postgres"))
    );
    assert_eq!(
        connect_with(&[], &format!("host={host} user=postgres dbname=template1")),
        Ok(address("template1"))
    );
    assert_eq!(
        connect_with(&[], &format!("postgresql://postgres@{encoded}/template1")),
        Ok(address("template1"))
    );
    assert_eq!(
        connect_with(&[("PGHOST", host), ("PGUSER", "postgres")], "template1"),
        Ok(address("template1"))
    );
    assert_eq!(
        connect_with(&[], &format!("host=/nonexistent,{host} user=postgres")),
        Ok(address("postgres"))
    );
    // The environment and services, which win over the data directory.
    assert_eq!(connect_with(&wrong_data, ""), Ok(address("postgres")));
    let database = [
        ("PGHOST", host),
        ("PGUSER", "postgres"),
        ("PGDATABASE", "template1"),
    ];
    assert_eq!(connect_with(&database, ""), Ok(address("template1")));
    let service = [
        ("PGSERVICEFILE", service_file),
        (CHILD_PGDATA, "/nonexistent"),
    ];
    assert_eq!(
        connect_with(&service, "service=here"),
        Ok(address("template1"))
    );
    assert_eq!(
        connect_with(
            &[("PGSERVICEFILE", service_file), ("PGSERVICE", "here")],
            ""
        ),
        Ok(address("template1"))
    );
    // Nothing but the data directory.
    assert_eq!(
        connect_with(&[(CHILD_PGDATA, pgdata)], "user=postgres"),
        Ok(address("postgres"))
    );
    let refused = connect_with(
        &[(CHILD_PGDATA, pgdata), ("PGSERVICEFILE", service_file)],
        "service=there",
    )
    .unwrap_err();
    assert!(
        refused.contains("definition of service \"there\" not found"),
        "{refused}"
    );
}

#[test]
fn the_data_directory_tells_its_servers_port_or_that_it_is_down() {
    let mut cluster = Cluster::prepare(usual(), "", 5439);
    cluster.primary.start(DEADLINE).unwrap();
    let target = ConnectTarget {
        conninfo: Some("user=postgres".to_owned()),
        pgdata: Some(cluster.primary.data_directory().to_owned()),
        ..ConnectTarget::default()
    };
    let mut session = Connection::connect(&target).unwrap();
    assert!(
        session.describe().contains("port=5439"),
        "{}",
        session.describe()
    );
    assert_eq!(
        value(&mut session, "SELECT current_setting('application_name')"),
        "leeward"
    );
    cluster.primary.stop(StopMode::Fast, DEADLINE).unwrap();
    assert!(matches!(
        Connection::connect(&target),
        Err(Error::NotRunning { .. })
    ));
}

#[test]
fn a_crashed_server_is_told_from_one_that_answers_slowly() {
    let mut cluster = Cluster::start(usual(), "");
    let target = ConnectTarget {
        pgdata: Some(cluster.primary.data_directory().to_owned()),
        ..ConnectTarget::default()
    };
    cluster.primary.kill9();
    let error = Connection::connect(&target).unwrap_err();
    assert!(matches!(error, Error::ConnectFailed(_)), "{error:?}");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("the server crashed or was killed")),
        "{error:?}"
    );
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    // Accepts by the kernel, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let began = Instant::now();
    for host in ["127.0.0.1", "127.0.0.1,127.0.0.1"] {
        let error = connect(&format!(
            "host={host} port={port} connect_timeout=2 sslmode=disable"
        ))
        .unwrap_err();
        assert!(matches!(error, Error::ConnectFailed(_)), "{error:?}");
    }
    assert!(began.elapsed() >= Duration::from_secs(2) && began.elapsed() < Duration::from_secs(20));
}

#[test]
fn passwords_come_from_a_file_and_never_show() {
    let cluster = Cluster::start(usual(), "password_encryption = 'scram-sha-256'");
    let mut admin = cluster.primary.connect().unwrap();
    admin
        .execute("CREATE ROLE alice LOGIN PASSWORD 'Right-Horse7'")
        .unwrap();
    let hba = cluster.primary.data_directory().join("pg_hba.conf");
    std::fs::write(
        &hba,
        "local all postgres trust\nlocal all alice scram-sha-256\n",
    )
    .unwrap();
    admin.execute("SELECT pg_reload_conf()").unwrap();
    let host = cluster
        .primary
        .socket_directory()
        .to_str()
        .unwrap()
        .to_owned();
    let base = format!("host={host} user=alice sslmode=disable");
    crate::cluster::wait_for("the new pg_hba.conf", || {
        connect(&format!("{base} passfile=/nonexistent")).is_err()
    });

    let passfile = cluster.directory.path().join("pgpass");
    std::fs::write(&passfile, format!("{host}:5432:*:alice:Right-Horse7\n")).unwrap();
    std::fs::set_permissions(
        &passfile,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let mut session = connect(&format!("{base} passfile={}", passfile.display())).unwrap();
    assert_eq!(value(&mut session, "SELECT current_user"), "alice");
    assert!(!format!("{session:?}").contains("Right-Horse7"));
    connect(&format!("{base} password=Right-Horse7")).unwrap();
    assert!(connect_with(&[("PGPASSWORD", "Right-Horse7")], &base).is_ok());

    let missing = connect(&format!("{base} passfile=/nonexistent")).unwrap_err();
    assert!(
        missing
            .hint()
            .is_some_and(|hint| hint.contains("~/.pgpass")),
        "{missing:?}"
    );
    let wrong = connect(&format!("{base} password=Wrong-Horse7")).unwrap_err();
    assert_eq!(wrong.sqlstate(), Some("28P01"));
    let shown = format!("{wrong} {wrong:?} {:?}", wrong.hint());
    assert!(
        shown.contains("password authentication failed for user \"alice\""),
        "{shown}"
    );
    assert!(
        !shown.contains("Wrong-Horse7") && !shown.contains("Right-Horse7"),
        "{shown}"
    );
}
