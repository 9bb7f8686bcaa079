//! The user that a server runs as, and acting with that user's rights instead of root's.
//!
//! Root reads and writes whatever a name leads to. What a server's user, or a repository, names is therefore looked up
//! with the rights of the server's user: where a name leads astray, it leads no further than that user could go alone.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// The home directory of the user that this process became.
static HOME: OnceLock<PathBuf> = OnceLock::new();

/// The home directory of the user that this process became ([`ServerUser::take_over`]); `HOME` still names root's.
#[must_use]
pub fn home() -> Option<&'static Path> {
    HOME.get().map(PathBuf::as_path)
}

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUser {
    /// Its name, where the host has one.
    pub name: Option<String>,
    /// User id.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its home directory; the root directory where the host knows none.
    pub home: PathBuf,
    /// Its other groups.
    groups: Vec<u32>,
}

impl ServerUser {
    /// The user of this name in `/etc/passwd`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::find(|fields| fields.first() == Some(&name))
    }

    /// The user of this number; one that `/etc/passwd` does not know has the group `gid` and no other.
    #[must_use]
    pub fn by_number(uid: u32, gid: u32) -> Self {
        let text = uid.to_string();
        Self::find(|fields| fields.get(2) == Some(&text.as_str())).unwrap_or(Self {
            name: None,
            uid,
            gid,
            home: "/".into(),
            groups: Vec::new(),
        })
    }

    fn find(is_wanted: impl Fn(&[&str]) -> bool) -> Option<Self> {
        let users = fs::read_to_string("/etc/passwd").ok()?;
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        Self::find_in(&users, &groups, is_wanted)
    }

    /// Looks in the text of `/etc/passwd` and `/etc/group`.
    fn find_in(users: &str, groups: &str, is_wanted: impl Fn(&[&str]) -> bool) -> Option<Self> {
        let fields = users
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| is_wanted(fields))?;
        let name = (*fields.first()?).to_owned();
        let others = groups.lines().filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let (gid, members) = (fields.next()?, fields.next()?);
            let is_member = members.split(',').any(|member| member == name);
            is_member.then(|| gid.parse().ok())?
        });
        Some(Self {
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: fields.get(5).map_or("/".into(), PathBuf::from),
            groups: others.collect(),
            name: Some(name),
        })
    }

    /// The user in words.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.name {
            Some(name) => format!("user \"{name}\""),
            None => format!("user id {}", self.uid),
        }
    }

    /// Makes this process the user's for good: nothing that it does later has root's rights. It must be root's, and have no
    /// other thread yet, for credentials are a thread's own and threads inherit them.
    ///
    /// # Errors
    /// The system's, and [`io::ErrorKind::Other`] when other threads run already.
    pub fn take_over(&self) -> io::Result<()> {
        if fs::read_dir("/proc/self/task")?.count() > 1 {
            return Err(io::Error::other("the process has several threads"));
        }
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
        let (gid, uid) = (Gid::from_raw(self.gid), Uid::from_raw(self.uid));
        set_thread_res_gid(gid, gid, gid)?;
        // With the user ids go all capabilities (capabilities(7)).
        set_thread_res_uid(uid, uid, uid)?;
        let _first = HOME.set(self.home.clone());
        Ok(())
    }

    /// Lets this thread, which must be root's, act as the user until the value is dropped. Threads that it starts meanwhile
    /// stay that user's.
    ///
    /// # Errors
    /// The system's, when this thread is not root's or may not.
    pub fn act(&self) -> io::Result<Acting> {
        if !is_root() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let root = Acting {
            gid: getegid(),
            groups: getgroups()?,
            of_this_thread: PhantomData,
        };
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
        // Dropped on an early return, `root` takes back what is done so far. Only the effective ids change: the saved ones
        // are the way back.
        set_thread_res_gid(None, Gid::from_raw(self.gid), None)?;
        set_thread_res_uid(None, Uid::from_raw(self.uid), None)?;
        Ok(root)
    }
}

/// A thread of root's that acts as another user, until this is dropped.
#[derive(Debug)]
#[must_use = "the thread is root's again as soon as this is dropped"]
pub struct Acting {
    gid: Gid,
    groups: Vec<Gid>,
    /// Credentials are a thread's own.
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Acting {
    fn drop(&mut self) {
        // A thread that stays the user it acted as can do less, never more.
        let _ = set_thread_res_uid(None, Uid::ROOT, None);
        let _ = set_thread_res_gid(None, self.gid, None);
        let _ = set_thread_groups(&self.groups);
    }
}

/// Returns whether this process can act as a user of this number. In a user namespace root may be one user under another name,
/// with the rights of that user alone.
#[must_use]
pub fn is_mapped(uid: u32) -> bool {
    // Without the file there are no namespaces.
    fs::read_to_string("/proc/self/uid_map").map_or(true, |map| is_in(&map, uid))
}

/// Returns whether this thread is root's and can become somebody else. In a user namespace of one user it cannot: there root is that
/// user, and gains nothing.
#[must_use]
pub fn can_become_others() -> bool {
    // Without the file there are no namespaces.
    is_root() && fs::read_to_string("/proc/self/uid_map").map_or(true, |map| has_others(&map))
}

/// Returns whether the text of `/proc/self/uid_map` names more users than root.
fn has_others(map: &str) -> bool {
    let mut users = 0;
    for line in map.lines() {
        let count = line.split_whitespace().nth(2).map(str::parse::<u64>);
        users += count.and_then(Result::ok).unwrap_or(0);
    }
    users > 1
}

/// Looks into the text of `/proc/self/uid_map`: for each range its first number here, outside, and how many.
fn is_in(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        match (fields.next(), fields.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => {
                uid.checked_sub(first).is_some_and(|at| at < count)
            }
            _ => false,
        }
    })
}

/// Whether this thread is root's.
#[must_use]
pub fn is_root() -> bool {
    geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\npostgres:x:112:118:PostgreSQL:/var/lib/postgresql:/bin/bash\n";
    const GROUPS: &str =
        "root:x:0:\nssl-cert:x:117:postgres,exim\npostgres:x:118:\npost:x:9:postgresql\n";

    #[test]
    fn a_user_has_its_groups() {
        let found =
            ServerUser::find_in(USERS, GROUPS, |fields| fields.first() == Some(&"postgres"));
        assert_eq!(
            found,
            Some(ServerUser {
                name: Some("postgres".to_owned()),
                uid: 112,
                gid: 118,
                home: "/var/lib/postgresql".into(),
                groups: vec![117],
            })
        );
        assert_eq!(
            ServerUser::find_in(USERS, GROUPS, |f| f[0] == "alice"),
            None
        );
        assert_eq!(
            ServerUser::by_number(4_000_000_001, 7),
            ServerUser {
                name: None,
                uid: 4_000_000_001,
                gid: 7,
                home: "/".into(),
                groups: Vec::new(),
            }
        );
    }

    #[test]
    fn a_namespace_has_its_users() {
        let whole = "         0          0 4294967295\n";
        assert!(is_in(whole, 0) && is_in(whole, 112) && !is_in(whole, u32::MAX));
        let one = "         0        112          1\n";
        assert!(is_in(one, 0) && !is_in(one, 1) && !is_in(one, 112));
        let rootless = "0 1000 1\n1 100000 65536\n";
        assert!(is_in(rootless, 112) && is_in(rootless, 65_536) && !is_in(rootless, 65_537));
        assert!(is_mapped(rustix::process::geteuid().as_raw()));
        assert!(has_others(whole) && has_others(rootless) && !has_others(one));
    }

    #[test]
    fn root_acts_as_another_and_is_root_again() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a directory");
        let secret = folder.path().join("secret");
        fs::write(&secret, "root's").expect("a file");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("a mode");
        let user = ServerUser::by_number(4_000_000_001, 4_000_000_001);
        let acting = user.act().expect("root may");
        assert!(!is_root());
        assert!(fs::read(&secret).is_err());
        assert!(user.act().is_err());
        assert!(
            fs::read(&secret).is_err(),
            "a refused change changed something"
        );
        drop(acting);
        assert!(is_root());
        assert!(fs::read(&secret).is_ok());
    }
}
