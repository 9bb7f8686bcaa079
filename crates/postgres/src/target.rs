//! Which server to talk to: libpq's rules first, then the data directory's own `postmaster.pid`.
//!
//! Whatever a connection string, a `PG*` variable or a service names, stands. What none of them names is taken from the
//! running server of the data directory, and only then from the defaults. libpq itself is asked what is named: it is
//! made to resolve everything and to stop before it opens a socket.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::libpq::{Session, parse_conninfo};
pub use crate::postmaster_pid::{PostmasterPid, PostmasterStatus};
use crate::server_user;

/// How long one host may take to answer unless `connect_timeout` says otherwise.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where distributions put the socket; the bundled libpq itself looks into `/tmp` only (`pg_config_manual.h`).
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// The files that libpq reads in the home directory (`fe-connect.c`, `fe-secure-openssl.c`).
const HOME_FILES: [(&str, &str); 5] = [
    ("passfile", ".pgpass"),
    ("sslcert", ".postgresql/postgresql.crt"),
    ("sslkey", ".postgresql/postgresql.key"),
    ("sslrootcert", ".postgresql/root.crt"),
    ("sslcrl", ".postgresql/root.crl"),
];

/// A value that no option takes: makes libpq stop after it has resolved every option, before it opens a socket.
const STOP: &str = "leeward-resolves-options-only";

/// Which server, as a user names it. `Debug` shows no secret.
#[derive(Clone, Default)]
pub struct ConnectTarget {
    /// libpq's connection string: `keyword=value` pairs, a URI, or a database name.
    pub conninfo: Option<String>,
    /// The data directory whose server is meant when nothing names a host.
    pub pgdata: Option<PathBuf>,
    /// The database, whatever the connection string and the environment say.
    pub database: Option<String>,
    /// `application_name` in the server's views; "leeward" when absent.
    pub application_name: Option<String>,
    /// Longest wait for one host to answer, where neither the connection string nor `PGCONNECT_TIMEOUT` says. Whole
    /// seconds, at least 2 (libpq's rule).
    pub connect_timeout: Option<Duration>,
}

impl fmt::Debug for ConnectTarget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A connection string may hold a password, and a damaged one cannot be redacted piece by piece.
        out.debug_struct("ConnectTarget")
            .field("conninfo", &self.conninfo.as_ref().map(|_| "(not shown)"))
            .field("pgdata", &self.pgdata)
            .field("database", &self.database)
            .field("application_name", &self.application_name)
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}

/// What is passed to libpq, in order, and what is known about the way there.
pub(crate) struct ResolvedTarget {
    /// `dbname` with the connection string first, so that what follows overrides it.
    pub(crate) parameters: Vec<(String, String)>,
    /// `host`, or `hostaddr` where only that is named; empty for libpq's default.
    pub(crate) host: String,
    /// For one host; `None` waits without end.
    pub(crate) connect_timeout: Option<Duration>,
    /// Said when nobody answers and `postmaster.pid` had chosen the address.
    pub(crate) postmaster: Option<String>,
}

impl ConnectTarget {
    /// Decides host, port, database and settings.
    pub(crate) fn resolve(&self) -> Result<ResolvedTarget, Error> {
        let conninfo = self
            .conninfo
            .as_deref()
            .map(str::trim)
            .filter(|conninfo| !conninfo.is_empty());
        if let Some(conninfo) = conninfo {
            refuse_unusable(conninfo)?;
        }
        let named = Named::ask(conninfo)?;
        let mut parameters: Vec<(String, String)> = Vec::new();
        let mut set =
            |keyword: &str, value: &str| parameters.push((keyword.to_owned(), value.to_owned()));
        if let Some(conninfo) = conninfo {
            set("dbname", conninfo);
        }
        // The first "dbname" may be a connection string; one that stands behind it is a name, whatever it looks like.
        if named.database.is_none() || conninfo.is_none() {
            set("dbname", named.database.as_deref().unwrap_or("postgres"));
        }
        if let Some(database) = &self.database {
            set("dbname", database);
        }

        let mut host = named.host.clone().unwrap_or_default();
        let mut postmaster = None;
        if named.host.is_none() {
            let running = self.pgdata.as_deref().map(running_server).transpose()?;
            if let Some((pid, pgdata)) = running {
                if let Some(named_by_server) = pid.host() {
                    set("host", &named_by_server);
                    host = named_by_server;
                }
                if named.port.is_none() && pid.port != 0 {
                    set("port", &pid.port.to_string());
                }
                postmaster = Some(describe_postmaster(&pid, pgdata));
            } else if let Some(directory) =
                default_socket_directory(named.port.as_deref().unwrap_or("5432"))
            {
                set("host", directory);
                host = directory.to_owned();
            }
        }

        if named.system_roots {
            // OpenSSL as compiled in looks into /usr/local/ssl; the system's own certificates lie elsewhere. What
            // "system" means for sslmode (verify-full and nothing less, `fe-connect.c`) has to be kept.
            if let Some(file) = openssl_probe::probe()
                .cert_file
                .as_deref()
                .and_then(Path::to_str)
            {
                set("sslrootcert", file);
                set("sslmode", "verify-full");
            }
        }

        if let Some(home) = server_user::home() {
            // libpq looks into HOME, which is root's; this process is the server's user.
            for (keyword, file) in HOME_FILES {
                if !named.keywords.iter().any(|named| named == keyword)
                    && let Some(file) = home.join(file).to_str()
                {
                    set(keyword, file);
                }
            }
        }

        let connect_timeout = match named.connect_timeout.as_deref().map(str::parse::<u64>) {
            // libpq: zero and less wait for ever, and nothing waits less than two seconds.
            Some(Ok(0) | Err(_)) => None,
            Some(Ok(seconds)) => Some(Duration::from_secs(seconds.max(2))),
            None => {
                let timeout = self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
                let seconds = timeout.as_secs().max(2);
                set("connect_timeout", &seconds.to_string());
                Some(Duration::from_secs(seconds))
            }
        };
        set(
            "fallback_application_name",
            self.application_name.as_deref().unwrap_or("leeward"),
        );
        set("client_encoding", "UTF8");
        for (keyword, value) in [
            ("keepalives_idle", "15"),
            ("keepalives_interval", "5"),
            ("keepalives_count", "3"),
        ] {
            if !named.keywords.iter().any(|named| named == keyword) {
                set(keyword, value);
            }
        }
        Ok(ResolvedTarget {
            parameters,
            host,
            connect_timeout,
            postmaster,
        })
    }
}

/// What the connection string, the environment and a service name between them.
#[derive(Debug, Default)]
struct Named {
    host: Option<String>,
    port: Option<String>,
    database: Option<String>,
    connect_timeout: Option<String>,
    system_roots: bool,
    keywords: Vec<String>,
}

impl Named {
    fn ask(conninfo: Option<&str>) -> Result<Named, Error> {
        let mut parameters = Vec::new();
        if let Some(conninfo) = conninfo {
            parameters.push(("dbname", conninfo));
        }
        // libpq fills an unnamed database with the user's name: a name that nobody has tells the two apart.
        parameters.extend([("user", STOP), ("channel_binding", STOP)]);
        let invalid = |reason: String| Error::InvalidConninfo { reason };
        let session =
            Session::start(&parameters).map_err(|_| invalid("it holds a NUL byte".to_owned()))?;
        let message = session.error_message();
        if !message.contains(STOP) {
            return Err(invalid(message));
        }
        let mut named = Named::default();
        for (keyword, value) in session.options() {
            if value.is_empty() {
                continue;
            }
            match keyword.as_str() {
                "host" => named.host = Some(value),
                // A host address alone is enough to connect.
                "hostaddr" => named.host = named.host.or(Some(value)),
                // 5432 is what libpq fills in, unless somebody says it.
                "port" if value != "5432" || says_port(conninfo) => named.port = Some(value),
                "dbname" if value != STOP => named.database = Some(value),
                "connect_timeout" => named.connect_timeout = Some(value),
                "sslrootcert" => {
                    named.system_roots = value == "system";
                    named.keywords.push(keyword);
                }
                // libpq fills in the one of the home directory.
                "passfile" if is_default_password_file(&value) => {}
                _ => named.keywords.push(keyword),
            }
        }
        if named
            .host
            .as_deref()
            .is_some_and(|host| !host.starts_with('@') && host.contains('@'))
        {
            return Err(invalid("the host name holds an \"@\"".to_owned()));
        }
        Ok(named)
    }
}

fn is_default_password_file(file: &str) -> bool {
    std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".pgpass") == Path::new(file))
}

fn says_port(conninfo: Option<&str>) -> bool {
    std::env::var_os("PGPORT").is_some_and(|port| !port.is_empty())
        || conninfo
            .and_then(|conninfo| parse_conninfo(conninfo).ok())
            .is_some_and(|options| {
                options
                    .iter()
                    .any(|(keyword, value)| keyword == "port" && !value.is_empty())
            })
}

/// Refuses what libpq would complain about in words that repeat a part of the string, which may be a password.
fn refuse_unusable(conninfo: &str) -> Result<(), Error> {
    let invalid = |reason: &str| {
        Err(Error::InvalidConninfo {
            reason: reason.to_owned(),
        })
    };
    let uri = ["postgresql://", "postgres://"]
        .iter()
        .find_map(|scheme| conninfo.strip_prefix(scheme));
    // Anything else is a database's name (`fe-connect.c`, `recognized_connection_string`).
    if uri.is_none() && !conninfo.contains('=') {
        return Ok(());
    }
    if let Some(rest) = uri {
        let rest = rest.split('?').next().unwrap_or_default();
        // User and password end at the first "@" or "/". Another "@" behind that is a piece of a password that should
        // have been percent-encoded, and libpq would quote it as a host, a port or a database.
        let behind = match rest.find(['@', '/']) {
            Some(at) => &rest[at + 1..],
            None => "",
        };
        if behind.contains('@') {
            return invalid(
                "an \"@\" or \"/\" inside the user or password of a URI must be written %40 or %2F",
            );
        }
    }
    let Err(message) = parse_conninfo(conninfo) else {
        return Ok(());
    };
    let lower = conninfo.to_lowercase();
    if lower.contains("pass") || lower.contains("secret") || lower.contains('@') {
        return invalid(
            "it does not follow libpq's syntax (details are not shown, for it may hold a password)",
        );
    }
    invalid(&message)
}

fn running_server(pgdata: &Path) -> Result<(PostmasterPid, &Path), Error> {
    match PostmasterPid::read(pgdata)? {
        Some(pid) => Ok((pid, pgdata)),
        None => Err(Error::NotRunning {
            pgdata: pgdata.to_owned(),
            reason: "there is no postmaster.pid in it".to_owned(),
        }),
    }
}

fn describe_postmaster(pid: &PostmasterPid, pgdata: &Path) -> String {
    let state = if pid.is_alive() {
        "which exists: see the server's log"
    } else {
        "which does not exist: the server crashed or was killed, start it"
    };
    format!(
        "\"{}\" names process {} as the server, {state}",
        pgdata.join("postmaster.pid").display(),
        pid.pid
    )
}

fn default_socket_directory(port: &str) -> Option<&'static str> {
    SOCKET_DIRECTORIES.into_iter().find(|directory| {
        Path::new(directory)
            .join(format!(".s.PGSQL.{port}"))
            .exists()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(conninfo: &str) -> String {
        match refuse_unusable(conninfo) {
            Err(error) => error.to_string(),
            Ok(()) => panic!("{conninfo:?} was accepted"),
        }
    }

    #[test]
    fn no_complaint_repeats_a_password() {
        for conninfo in [
            "host=a password=hun ter2",
            "password='hunter2",
            "host=a passwrd=hunter2 x",
            "postgresql://u:hunt%zzer2@h/d",
            "postgresql://u:hun@ter2@h/d",
            "postgresql://u:hun/ter2@h/d",
            "host=a hunter2 password=x",
        ] {
            let complaint = refused(conninfo);
            assert!(
                !complaint.contains("hun") && !complaint.contains("ter2"),
                "{complaint}"
            );
        }
    }

    #[test]
    fn a_complaint_without_secrets_is_libpqs_own() {
        assert!(refused("hots=a").contains("invalid connection option \"hots\""));
        assert!(refused("host=a nonsense").contains("missing \"=\" after \"nonsense\""));
    }

    #[test]
    fn names_and_uris_are_accepted() {
        for conninfo in [
            "mydb",
            "host=/tmp port=5433",
            "postgresql://",
            "postgresql:///db?host=/tmp",
            "postgres://u:p%40ss@h1,h2:5433/db?target_session_attrs=standby",
            "postgresql://u@h/db?options=-c%20search_path%3Da@b",
        ] {
            assert!(refuse_unusable(conninfo).is_ok(), "{conninfo}");
        }
    }

    #[test]
    fn debug_shows_no_conninfo() {
        let target = ConnectTarget {
            conninfo: Some("password=hunter2".to_owned()),
            ..ConnectTarget::default()
        };
        assert!(!format!("{target:?}").contains("hunter2"));
    }
}
