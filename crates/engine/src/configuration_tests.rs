use super::*;

const DATA: &str = "/srv/data";

/// A copy in memory. A path that ends in a slash is a directory.
struct InMemory(BTreeMap<PathBuf, Vec<u8>>);

impl Files for InMemory {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(path).filter(|_| !self.is_folder(path)).cloned())
    }

    fn names(&self, folder: &Path) -> Option<Vec<OsString>> {
        let inside = self.0.keys().filter(|path| path.parent() == Some(folder));
        let names: Vec<_> = inside.map(|p| p.file_name().unwrap().to_owned()).collect();
        (self.is_folder(folder) || !names.is_empty()).then_some(names)
    }

    fn can_open(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }
}

impl InMemory {
    fn is_folder(&self, path: &Path) -> bool {
        self.0.get(path).is_some_and(|bytes| bytes == b"DIRECTORY")
    }
}

fn used(config: &str, hba: &str, ident: &str) -> ConfigurationSummary {
    let told = |path: &str| (!path.is_empty()).then(|| path.to_owned());
    ConfigurationSummary {
        config_file: told(config),
        hba_file: told(hba),
        ident_file: told(ident),
        hosts_file: None,
        data_directory: Some("/linked/data".to_owned()),
    }
}

/// What becomes of `before`, files of a copy, when the server used the files in `used`: only what changes is expected.
#[track_caller]
fn check(
    used: Option<ConfigurationSummary>,
    outside: &[&str],
    before: &[(&str, &[u8])],
    after: &[(&str, &[u8])],
) -> Adoption {
    let copy = before.iter().map(|(p, b)| (p.into(), b.to_vec())).collect();
    let outside: Vec<String> = outside.iter().map(|&file| file.to_owned()).collect();
    let adoption = adopt(&InMemory(copy), Path::new(DATA), used, &outside).unwrap();
    let shown = |(path, bytes): (&Path, &[u8])| {
        format!("{}: {}", path.display(), bytes.escape_ascii()).replace("\\n", "\n  ")
    };
    let found: Vec<String> = adoption
        .files
        .iter()
        .map(|(path, bytes)| shown((path, bytes)))
        .collect();
    let after: BTreeMap<&Path, &[u8]> = after.iter().map(|(p, b)| (Path::new(p), *b)).collect();
    let expected: Vec<String> = after
        .iter()
        .map(|(path, bytes)| shown((path, bytes)))
        .collect();
    assert_eq!(
        found,
        expected,
        "\n{}\n instead of\n{}",
        found.join("\n"),
        expected.join("\n")
    );
    adoption
}

const STUB: &str = "# The server that was backed up had its configuration elsewhere; it came along, with its paths made to fit.\n";

#[test]
fn configuration_inside_stays_what_it_is() {
    let files: [(&str, &[u8]); 4] = [
        (
            "postgresql.conf",
            b"include_dir 'conf.d'\nport = 5433\ninclude 'x/y.conf'\nssl = off",
        ),
        ("conf.d", b"DIRECTORY"),
        ("x/y.conf", b"include '../conf.d/z'\n"),
        ("conf.d/z", b""),
    ];
    check(None, &[], &files, &[]);
    let all = used(
        "/srv/data/postgresql.conf",
        "/linked/data/pg_hba.conf",
        "/srv/data/pg_ident.conf",
    );
    check(Some(all), &[], &files, &[]);
}

#[test]
fn places_of_the_old_server_become_comments_inside_too() {
    check(
        Some(used("", "", "")),
        &[],
        &[
            (
                "postgresql.conf",
                b"# caf\xe9\nDATA_directory = '/srv/data'\nhba_file='/srv/data/pg_hba.conf'\nlog_directory = '/linked/data/l''og' # here\n\
                  include '/srv/data/a.conf'\ninclude_if_exists '/etc/none'\ninclude_dir 'gone.d'",
            ),
            ("a.conf", b"external_pid_file = 'x'\r\nwork_mem = '1MB'\r\n"),
            ("postgresql.auto.conf", b"ident_file = 'x'\n"),
        ],
        &[
            (
                "postgresql.conf",
                b"# caf\xe9\n# not in a copy: DATA_directory = '/srv/data'\n# not in a copy: hba_file='/srv/data/pg_hba.conf'\nlog_directory = 'l''og' # here\n\
                  include 'a.conf'\n# not in the backup: include_if_exists '/etc/none'\n# not in the backup: include_dir 'gone.d'",
            ),
            ("a.conf", b"# not in a copy: external_pid_file = 'x'\r\nwork_mem = '1MB'\r\n"),
            ("postgresql.auto.conf", b"# not in a copy: ident_file = 'x'\n"),
        ],
    );
}

#[test]
fn debians_layout() {
    let etc = "configuration/etc/postgresql/15/main";
    let at = |name: &str| format!("{etc}/{name}");
    let stub = format!("{STUB}include '{etc}/main.conf'\n");
    let adoption = check(
        Some(used(
            "/etc/postgresql/15/main/main.conf",
            "/etc/postgresql/15/main/hba",
            "/etc/postgresql/15/main/pg_ident.conf",
        )),
        &[],
        &[
            (
                &at("main.conf"),
                b"hba_file = '/etc/postgresql/15/main/hba' # (change requires restart)\nssl = on\nssl_cert_file = '/etc/ssl/x.pem'\n\
                  include_dir 'conf.d'\ninclude = '/etc/postgresql/common.conf'\ninclude '/srv/data/in.conf'\ninclude 'no.conf'\n",
            ),
            (&at("conf.d"), b"DIRECTORY"),
            ("configuration/etc/postgresql/common.conf", b"port = 6000\n"),
            ("in.conf", b"port = 6001\n"),
            (&at("hba"), b"# caf\xe9\nlocal all @admins peer\nlocal all \"@x\",@/etc/bosses md5\n"),
            (&at("admins"), b"alice @more\n"),
            (&at("more"), b""),
            ("configuration/etc/bosses", b""),
            (&at("pg_ident.conf"), b"m a b\n"),
            ("server.key", b""),
        ],
        &[
            ("postgresql.conf", stub.as_bytes()),
            (
                &at("main.conf"),
                b"# not in a copy: hba_file = '/etc/postgresql/15/main/hba' # (change requires restart)\n\
                  ssl = off # there is no certificate; was: ssl = on\nssl_cert_file = '/etc/ssl/x.pem'\n\
                  include_dir 'conf.d'\ninclude = '../../common.conf'\ninclude '../../../../../in.conf'\n# not in the backup: include 'no.conf'\n",
            ),
            (
                "pg_hba.conf",
                b"# caf\xe9\nlocal all @\"configuration/etc/postgresql/15/main/admins\" peer\nlocal all \"@x\",@\"configuration/etc/bosses\" md5\n",
            ),
            ("pg_ident.conf", b"m a b\n"),
        ],
    );
    assert_eq!(adoption.settings["port"], b"6001");
    assert_eq!(adoption.notes.len(), 2, "{:?}", adoption.notes);
}

#[test]
fn what_the_server_did_not_use_makes_room() {
    let stub = format!("{STUB}include 'configuration/etc/it''s.conf'\n");
    let adoption = check(
        Some(used("/etc/it's.conf", "/etc/pg_hba.conf", "")),
        &[],
        &[
            ("postgresql.conf", b"port = 1\n"),
            ("pg_hba.conf", b"local all all trust\n"),
            ("pg_ident.conf", b""),
            (
                "configuration/etc/it's.conf",
                b"include '/srv/data/postgresql.conf'\n",
            ),
            (
                "configuration/etc/pg_hba.conf",
                b"local all all reject\ninclude_dir none.d\n",
            ),
        ],
        &[
            ("postgresql.conf", stub.as_bytes()),
            ("postgresql.conf.unused", b"port = 1\n"),
            (
                "configuration/etc/it's.conf",
                b"include '../../postgresql.conf.unused'\n",
            ),
            (
                "pg_hba.conf",
                b"local all all reject\n# not in the backup: include_dir none.d\n",
            ),
        ],
    );
    assert_eq!(adoption.moved.len(), 2);
}

#[test]
fn a_backup_that_does_not_say_which_files_were_used() {
    let stub = format!("{STUB}include 'configuration/etc/pg/postgresql.conf'\n");
    check(
        None,
        &["/etc/pg/pg_hba.conf", "/etc/pg/postgresql.conf"],
        &[
            (
                "configuration/etc/pg/postgresql.conf",
                b"include_dir 'conf.d'\n",
            ),
            (
                "configuration/etc/pg/pg_hba.conf",
                b"local all @gone peer\n",
            ),
            ("pg_ident.conf", b""),
        ],
        &[
            ("postgresql.conf", stub.as_bytes()),
            (
                "configuration/etc/pg/postgresql.conf",
                b"# not in the backup: include_dir 'conf.d'\n",
            ),
            (
                "pg_hba.conf",
                b"local all @\"configuration/etc/pg/gone\" peer\n",
            ),
        ],
    );
}

#[test]
fn ssl_stays_on_with_its_certificate() {
    for certificate in ["", "ssl_cert_file = 'a'\n", "ssl_ca_file = '/srv/data/a'\n"] {
        let text = format!("ssl = yes\n{certificate}");
        let copy: BTreeMap<_, _> = ["a", "server.crt", "server.key"]
            .map(|name| (PathBuf::from(name), Vec::new()))
            .into_iter()
            .chain([("postgresql.conf".into(), text.into_bytes())])
            .collect();
        let adoption = adopt(&InMemory(copy), Path::new(DATA), None, &[]).unwrap();
        assert_eq!(adoption.notes, [""; 0], "{certificate}");
        assert_eq!(adoption.settings["ssl"], b"yes");
    }
}

#[test]
fn hosts_from_outside_come_along_with_paths_made_to_fit() {
    let mut from_etc = used("", "", "");
    from_etc.hosts_file = Some("/etc/pg/hosts".to_owned());
    let adoption = check(
        Some(from_etc),
        &["/etc/pg/hosts"],
        &[
            (
                "postgresql.conf",
                b"ssl = on\nssl_sni = on\nhosts_file = '/etc/pg/hosts'\n",
            ),
            ("pg_hosts.conf", b"# HOSTNAME\n"),
            (
                "configuration/etc/pg/hosts",
                b"@names \"/srv/data/a b.crt\" /linked/data/a.key # one\ninclude more\n",
            ),
            ("configuration/etc/pg/names", b"a.example\n"),
            (
                "configuration/etc/pg/more",
                b"b.example /etc/ssl/b.crt b.key ca.crt \"cat /etc/pass\" off\n",
            ),
            ("a b.crt", b""),
            ("a.key", b""),
            ("b.key", b""),
            ("ca.crt", b""),
            ("/etc/ssl/b.crt", b""),
        ],
        &[
            (
                "postgresql.conf",
                b"ssl = on\nssl_sni = on\n# not in a copy: hosts_file = '/etc/pg/hosts'\n",
            ),
            (
                "pg_hosts.conf",
                b"@\"configuration/etc/pg/names\" \"a b.crt\" \"a.key\" # one\ninclude \"configuration/etc/pg/more\"\n",
            ),
        ],
    );
    let unused = Path::new("pg_hosts.conf.unused");
    assert_eq!(adoption.moved[Path::new("pg_hosts.conf")], unused);
}

#[test]
fn ssl_needs_what_hosts_name_where_sni_is_on() {
    let ssl = |settings: &str, hosts: &str, there: &[&str]| {
        let copy: BTreeMap<_, _> = there
            .iter()
            .map(|name| (PathBuf::from(name), Vec::new()))
            .chain([
                ("postgresql.conf".into(), settings.as_bytes().to_vec()),
                ("pg_hosts.conf".into(), hosts.as_bytes().to_vec()),
            ])
            .collect();
        let adoption = adopt(&InMemory(copy), Path::new(DATA), None, &[]).unwrap();
        adoption.settings["ssl"] == b"on"
    };
    let (own, hosts) = (["server.crt", "server.key"], ["c", "k"]);
    let with_sni = "ssl = on\nssl_sni = on\n";
    assert!(ssl(with_sni, "a c k\n", &hosts));
    assert!(!ssl(with_sni, "a c k\n", &own));
    assert!(!ssl(with_sni, "a c k ca\n", &hosts));
    assert!(ssl(with_sni, "# nobody\n", &own), "no hosts, no SNI");
    assert!(!ssl(with_sni, "# nobody\n", &hosts));
    assert!(ssl("ssl = on\nssl_sni = off\n", "a c k\n", &own));
    assert!(!ssl("ssl = on\n", "a c k\n", &hosts));
}
