//! What is read about a server, and what a role without rights is told.

use std::os::unix::fs::{MetadataExt, chown};

use leeward_pgformat::MajorVersion;
use leeward_postgres::Error;
use leeward_postgres::backup_session::{BackupFrom, BackupSession};
use leeward_postgres::server_facts::{Role, ServerFacts};

use crate::cluster::{Cluster, installed, usual, value};
use crate::connecting::connect;

#[test]
fn each_missing_right_comes_with_the_statement_that_grants_it() {
    for bin in installed() {
        let cluster = Cluster::start(bin, "");
        let mut admin = cluster.primary.connect().unwrap();
        admin.execute("CREATE ROLE \"odd \"\"name\" LOGIN").unwrap();
        let conninfo = format!(
            "host={} user='odd \"name' dbname=postgres",
            cluster.primary.socket_directory().display()
        );
        let error =
            BackupSession::start(connect(&conninfo).unwrap(), "test", BackupFrom::Any).unwrap_err();
        let Error::MissingPrivileges { missing, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(missing.len(), 3, "{error}");
        let facts = ServerFacts::read(&mut connect(&conninfo).unwrap()).unwrap();
        assert_eq!((&facts.data_directory, &facts.config_file), (&None, &None));
        assert_eq!(facts.privileges.advisable.len(), 1);
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("REPLICATION") && hint.contains("GRANT EXECUTE"))
        );

        for privilege in missing.iter().chain(&facts.privileges.advisable) {
            admin.execute(&privilege.fix).unwrap();
        }
        let facts = ServerFacts::read(&mut connect(&conninfo).unwrap()).unwrap();
        assert_eq!(
            facts.data_directory.as_deref(),
            Some(cluster.primary.data_directory())
        );
        assert_eq!(facts.privileges.advisable, []);
        let mut session =
            BackupSession::start(connect(&conninfo).unwrap(), "test", BackupFrom::Any).unwrap();
        session.position().unwrap();
        session.stop().unwrap();
        session.finish().unwrap();
    }
}

#[test]
fn facts_agree_with_the_server() {
    for bin in installed() {
        let major = bin.major();
        let config = "archive_mode = on\narchive_command = 'true'\nmax_replication_slots = 7\nmax_slot_wal_keep_size = '99MB'";
        let cluster = Cluster::start(bin, config);
        let mut admin = cluster.primary.connect().unwrap();
        let location = cluster.directory.path().join("space");
        std::fs::create_dir(&location).unwrap();
        let owner = std::fs::metadata(cluster.primary.data_directory()).unwrap();
        chown(&location, Some(owner.uid()), Some(owner.gid())).unwrap();
        admin
            .execute(&format!(
                "CREATE TABLESPACE linked LOCATION '{}'",
                location.display()
            ))
            .unwrap();
        admin
            .execute("SET allow_in_place_tablespaces = on")
            .unwrap();
        admin
            .execute("CREATE TABLESPACE \"in place\" LOCATION ''")
            .unwrap();
        let facts = ServerFacts::read(&mut admin).unwrap();
        assert_eq!(
            (facts.version.major, facts.role),
            (Some(major), Role::Primary)
        );
        assert_eq!(
            facts.system_identifier.to_string(),
            value(
                &mut admin,
                "SELECT system_identifier FROM pg_control_system()"
            )
        );
        assert_eq!(
            facts.config_file,
            Some(cluster.primary.data_directory().join("postgresql.conf"))
        );
        assert_eq!(
            facts.hba_file,
            Some(cluster.primary.data_directory().join("pg_hba.conf"))
        );
        let hosts_file = cluster.primary.data_directory().join("pg_hosts.conf");
        assert_eq!(
            facts.hosts_file,
            (major >= MajorVersion::V19).then_some(hosts_file)
        );
        assert!(
            facts
                .settings_files
                .contains(&cluster.primary.data_directory().join("postgresql.conf"))
        );
        assert_eq!(
            (facts.wal_segment_size.bytes(), facts.block_size_bytes),
            (16 << 20, 8192)
        );
        // initdb turns checksums on since 18.
        assert_eq!(facts.data_checksums, major >= MajorVersion::V18);
        assert!(facts.full_page_writes && facts.privileges.superuser && facts.settings.archives);
        assert_eq!(facts.settings.max_replication_slots, 7);
        assert_eq!(facts.settings.max_slot_wal_keep_size_mb, 99);
        assert_eq!(
            (facts.user.as_str(), facts.database.as_str()),
            ("postgres", "postgres")
        );
        let spaces: Vec<(&str, bool)> = facts
            .tablespaces
            .iter()
            .map(|space| (space.name.as_str(), space.is_in_place()))
            .collect();
        assert_eq!(spaces, [("linked", false), ("in place", true)], "{major}");
        assert_eq!(facts.tablespaces[0].location, location);
    }
}

#[test]
fn a_standby_and_its_primary_know_each_other() {
    for bin in installed() {
        let mut cluster = Cluster::start(bin, "");
        let standby = cluster.standby("standby");
        let facts = ServerFacts::read(&mut standby.connect().unwrap()).unwrap();
        assert_eq!(facts.role, Role::Standby);
        assert!(facts.streaming && facts.replay.lsn.is_valid() && facts.attached_standbys == 0);
        let facts = ServerFacts::read(&mut cluster.primary.connect().unwrap()).unwrap();
        assert_eq!(
            (facts.role, facts.streaming, facts.attached_standbys),
            (Role::Primary, false, 1)
        );
    }
}

#[test]
fn a_server_that_writes_too_little_wal_is_refused() {
    let cluster = Cluster::start(usual(), "wal_level = minimal\nmax_wal_senders = 0");
    let error = BackupSession::start(cluster.primary.connect().unwrap(), "test", BackupFrom::Any)
        .unwrap_err();
    assert!(
        matches!(&error, Error::WalLevelTooLow { wal_level } if wal_level == "minimal"),
        "{error:?}"
    );
}
