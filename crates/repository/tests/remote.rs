//! The remote store on a real S3 server, as it is and behind a proxy that loses, delays and refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use leeward_repository::store::{self, RemoteProblem, Secret, Store, StoreError, StoreOptions};
use leeward_repository::url::RepositoryUrl;
use leeward_tests::faults::{Fault, FaultProxy};
use leeward_tests::s3::{ACCESS_KEY_ID, BUCKET, S3Server, SECRET_ACCESS_KEY, free_address};
use leeward_tests::tls::TlsFront;

mod contract;
use contract::{bytes, key};

fn options(endpoint: String) -> StoreOptions {
    StoreOptions {
        endpoint: Some(endpoint),
        access_key_id: Some(Secret::new(ACCESS_KEY_ID)),
        secret_access_key: Some(Secret::new(SECRET_ACCESS_KEY)),
        ..StoreOptions::default()
    }
}

fn open(server: &S3Server, options: &StoreOptions) -> Arc<dyn Store> {
    open_url(&server.repository("team/one"), options)
}

fn open_url(url: &str, options: &StoreOptions) -> Arc<dyn Store> {
    store::open(&RepositoryUrl::parse(url).expect("a URL"), options).expect("opened")
}

/// A server with a proxy before it, and a store through the proxy that loses patience soon.
fn faulty(patience: Duration, retry_for: Duration) -> (S3Server, FaultProxy, Arc<dyn Store>) {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.address());
    let store = open(
        &server,
        &StoreOptions {
            patience,
            retry_for,
            ..options(proxy.endpoint())
        },
    );
    (server, proxy, store)
}

#[test]
fn a_bucket_keeps_the_contract() {
    let server = S3Server::start();
    contract::check(&*open(&server, &options(server.endpoint())));
}

#[test]
fn a_whole_bucket_keeps_the_contract() {
    let server = S3Server::start();
    contract::check(&*open_url(
        &format!("s3://{BUCKET}"),
        &options(server.endpoint()),
    ));
}

#[test]
fn a_bad_server_keeps_the_contract() {
    const BAD: &[Fault] = &[
        Fault::Unavailable,
        Fault::UnavailableAfterEffect,
        Fault::CutBefore,
        Fault::CutAfterEffect,
        Fault::CutBody,
    ];
    for seed in 0..3 {
        let (_server, proxy, store) = faulty(Duration::from_secs(30), Duration::from_secs(60));
        proxy.set_random(seed, 15, BAD);
        contract::check(&*store);
        assert!(
            proxy.injected() > 100,
            "seed {seed}: {} of {} met a fault",
            proxy.injected(),
            proxy.requests()
        );
    }
}

#[test]
fn a_lost_answer_does_not_lose_the_win() {
    for lost in [Fault::CutAfterEffect, Fault::UnavailableAfterEffect] {
        let (_server, proxy, store) = faulty(Duration::from_secs(30), Duration::from_secs(30));
        let first_put_of = move |request: &leeward_tests::faults::Request| {
            if request.method == "PUT" && request.repetition == 0 {
                lost
            } else {
                Fault::None
            }
        };
        let place = key("backups/x/backup.json");
        proxy.set(first_put_of);
        store
            .create(&place, Bytes::from_static(b"mine"))
            .expect("it was us");
        assert!(proxy.injected() > 0);

        proxy.set(|_| Fault::None);
        let (_, version) = store.get_versioned(&place).expect("read").expect("there");
        let hits = AtomicU32::new(0);
        proxy.set(move |request| {
            let first = request.method == "PUT" && hits.fetch_add(1, Ordering::Relaxed) == 0;
            if first { lost } else { Fault::None }
        });
        let replaced = store
            .replace(&place, Bytes::from_static(b"mine again"), &version)
            .expect("it was us");
        let (content, version) = store.get_versioned(&place).expect("read").expect("there");
        assert_eq!((&content[..], version), (&b"mine again"[..], replaced));
    }
}

#[test]
fn somebody_else_may_win_between_two_attempts() {
    let (server, proxy, store) = faulty(Duration::from_secs(30), Duration::from_secs(30));
    let other = open(&server, &options(server.endpoint()));
    let place = key("backups/x/backup.json");
    proxy.set(move |request| {
        if request.method == "PUT" && request.repetition == 0 {
            other
                .create(&key("backups/x/backup.json"), Bytes::from_static(b"theirs"))
                .expect("created");
            Fault::UnavailableAfterEffect
        } else {
            Fault::None
        }
    });
    assert!(matches!(
        store.create(&place, Bytes::from_static(b"mine")),
        Err(StoreError::AlreadyExists { .. })
    ));
    assert_eq!(&store.get(&place).expect("read")[..], b"theirs");
}

#[test]
fn a_silent_server_is_asked_again() {
    let (_server, proxy, store) = faulty(Duration::from_millis(300), Duration::from_secs(60));
    let place = key("packs/1.pack");
    let content = bytes(12 << 20, 3);
    // The first try of everything gets no answer: begin, parts, look, completion.
    proxy.set(|request| {
        if request.repetition == 0 {
            Fault::Stall
        } else {
            Fault::None
        }
    });
    let mut upload = store.upload(&place).expect("begun");
    upload.write(&content).expect("written");
    assert_eq!(upload.finish().expect("finished"), 12 << 20);
    assert!(store.get(&place).expect("read")[..] == content[..]);
    assert!(proxy.injected() >= 4, "{}", proxy.injected());
}

#[test]
fn patience_ends() {
    let (_server, proxy, store) = faulty(Duration::from_millis(200), Duration::from_secs(2));
    store
        .create(&key("x"), Bytes::from_static(b"x"))
        .expect("the server answers at first");
    for (fault, expected) in [
        (Fault::Unavailable, RemoteProblem::Unavailable(503)),
        (Fault::Stall, RemoteProblem::TimedOut),
        (Fault::CutBody, RemoteProblem::ConnectionLost),
    ] {
        proxy.set(move |_| fault);
        let begun = Instant::now();
        match store.get(&key("x")) {
            Err(StoreError::Remote {
                problem, attempts, ..
            }) => {
                assert_eq!(problem, expected);
                assert!(attempts > 2, "{attempts} attempts");
            }
            other => panic!("{fault:?}: {other:?}"),
        }
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "{:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn an_aborted_upload_leaves_no_parts() {
    let server = S3Server::start();
    let store = open(&server, &options(server.endpoint()));
    let mut upload = store.upload(&key("packs/1.pack")).expect("begun");
    upload.write(&bytes(30 << 20, 4)).expect("written");
    drop(upload);
    let root = server.bucket_dir();
    let root = root.parent().expect("the server's root");
    let left: Vec<_> = std::fs::read_dir(root)
        .expect("read")
        .map(|entry| {
            entry
                .expect("read")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains("upload"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

/// The one line and the hint that a person gets, with nothing secret in it.
#[track_caller]
fn check_error(store: &dyn Store, line: &str) {
    for error in [
        store
            .get(&key("leeward.json"))
            .map(drop)
            .expect_err("refused"),
        store
            .create(&key("leeward.json"), Bytes::from_static(b"x"))
            .expect_err("refused"),
    ] {
        let shown = format!("{error} {error:?} {:?} {store:?}", error.hint());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(error.hint().is_some(), "{shown}");
        let line = line.replace(
            "read",
            if error.to_string().contains("could not write") {
                "write"
            } else {
                "read"
            },
        );
        assert_eq!(error.to_string(), line);
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let server = S3Server::start();
    let good = options(server.endpoint());

    let wrong_secret = StoreOptions {
        secret_access_key: Some(Secret::new("hunter2")),
        ..good.clone()
    };
    check_error(
        &*open(&server, &wrong_secret),
        "could not read object \"leeward.json\" in s3://leeward-test/team/one: the credentials are refused (SignatureDoesNotMatch)",
    );
    let wrong_id = StoreOptions {
        access_key_id: Some(Secret::new("hunter2")),
        ..good.clone()
    };
    check_error(
        &*open(&server, &wrong_id),
        "could not read object \"leeward.json\" in s3://leeward-test/team/one: the credentials are refused (NotSignedUp)",
    );
    let nobody = free_address();
    check_error(
        &*open(&server, &options(format!("http://{nobody}"))),
        &format!(
            "could not read object \"leeward.json\" in s3://leeward-test/team/one: nothing answers at http://{nobody}"
        ),
    );
    check_error(
        &*open(&server, &options("https://no-such-host.invalid".into())),
        "could not read object \"leeward.json\" in s3://leeward-test/team/one: \
         the name \"no-such-host.invalid\" could not be resolved",
    );
    check_error(
        &*open(&server, &options(format!("https://{}", server.address()))),
        "could not read object \"leeward.json\" in s3://leeward-test/team/one: \
         no secure connection: the server does not speak TLS here",
    );
}

#[test]
fn listing_a_missing_bucket_says_so() {
    let server = S3Server::start();
    let store = open_url("s3://missing-bucket/x", &options(server.endpoint()));
    let error = store.list_folders("").expect_err("refused");
    assert_eq!(
        error.to_string(),
        "could not list the repository in s3://missing-bucket/x: the bucket does not exist"
    );
}

#[test]
fn tls_with_an_authority_of_ones_own() {
    let server = S3Server::start();
    let tls = TlsFront::new();
    let authority = tls.ca_certificate();
    let proxy = FaultProxy::start_tls(server.address(), tls);

    let untrusted = open(&server, &options(proxy.endpoint()));
    check_error(
        &*untrusted,
        "could not read object \"leeward.json\" in s3://leeward-test/team/one: \
         no secure connection: the certificate's issuer is not trusted",
    );

    let trusted = StoreOptions {
        ca_certificate: Some(authority.clone()),
        ..options(proxy.endpoint())
    };
    contract::check(&*open(&server, &trusted));

    let other_name = proxy.endpoint().replace("127.0.0.1", "localhost");
    check_error(
        &*open(
            &server,
            &StoreOptions {
                endpoint: Some(other_name),
                ..trusted.clone()
            },
        ),
        "could not read object \"leeward.json\" in s3://leeward-test/team/one: \
         no secure connection: certificate not valid for name \"localhost\"; \
         certificate is only valid for IpAddress(127.0.0.1)",
    );

    let careless = StoreOptions {
        skip_tls_verification: true,
        ..options(proxy.endpoint())
    };
    let content = open(&server, &careless)
        .get(&key("small/a/object.json"))
        .expect("read");
    assert_eq!(&content[..], b"back");

    let empty = tempfile::NamedTempFile::new().expect("a file");
    let error = store::open(
        &RepositoryUrl::parse(&server.repository("x")).expect("a URL"),
        &StoreOptions {
            ca_certificate: Some(empty.path().to_owned()),
            ..trusted
        },
    )
    .expect_err("refused");
    assert!(
        error.to_string().contains("holds no certificate"),
        "{error}"
    );
}
