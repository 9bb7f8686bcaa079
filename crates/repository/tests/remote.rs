//! The remote store on a real S3 server, as it is and behind a proxy that loses, delays and refuses.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use leeward_repository::RepositoryError;
use leeward_repository::conditional_writes::are_honored;
use leeward_repository::store::memory::MemoryStore;
use leeward_repository::store::{
    self, RemoteProblem, Secret, Store, StoreError, StoreOptions, list_all,
};
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
    let whole = store.get_range(&place, 0..12 << 20).expect("read");
    assert!(whole[..] == content[..]);
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

/// An endpoint where every connection is handed to `serve`.
fn serving(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("its address");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(client));
        }
    });
    format!("http://{address}")
}

/// The head of an answer that promises `length` bytes of an object of `size`.
fn head(status: &str, length: u64, range: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{range}ETag: \"1\"\r\n\
         Last-Modified: Sat, 28 Nov 2026 02:30:00 GMT\r\n\r\n"
    )
}

/// Waits for the head of a request, and answers it.
fn answer(client: &mut TcpStream, answer: &[u8]) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|read| read == 1) {
        request.push(byte[0]);
    }
    let _ = client.write_all(answer);
}

/// A store that gives up soon.
fn impatient(endpoint: String) -> Arc<dyn Store> {
    let url = format!("s3://{BUCKET}");
    open_url(
        &url,
        &StoreOptions {
            patience: Duration::from_millis(300),
            retry_for: Duration::from_millis(500),
            ..options(endpoint)
        },
    )
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let connections = Mutex::new(Vec::new());
    let store = impatient(serving(move |client| {
        connections.lock().expect("no panic").push(client);
    }));
    let place = key("x");
    let (_, version) = {
        let memory = MemoryStore::bucket();
        memory.put(place.clone(), &b"x"[..]);
        memory.get_versioned(&place).expect("read").expect("there")
    };
    let upload = |length: usize| {
        let mut upload = store.upload(&key("large"))?;
        upload.write(&bytes(length, 1))?;
        upload.finish().map(drop)
    };
    for (what, result) in [
        ("get", store.get(&place).map(drop)),
        ("get_range", store.get_range(&place, 0..9).map(drop)),
        ("get_start", store.get_start(&place, 9).map(drop)),
        ("size", store.size(&place).map(drop)),
        ("create", store.create(&place, Bytes::from_static(b"x"))),
        (
            "replace",
            store
                .replace(&place, Bytes::from_static(b"y"), &version)
                .map(drop),
        ),
        (
            "overwrite",
            store.overwrite(&place, Bytes::from_static(b"y")).map(drop),
        ),
        ("small upload", upload(10)),
        ("large upload", upload(9 << 20)),
        ("list", list_all(&*store, "").map(drop)),
        ("list_folders", store.list_folders("").map(drop)),
        ("delete", store.delete(&place)),
        ("probe", are_honored(&*store).map(drop).map_err(stored)),
    ] {
        match result {
            Err(StoreError::Remote {
                problem: RemoteProblem::TimedOut,
                ..
            }) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

fn stored(error: RepositoryError) -> StoreError {
    match error {
        RepositoryError::Store(error) => *error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_body_that_never_ends_is_given_up() {
    // One byte now and then is a sign of life, and would bring 64 KiB in an hour.
    let store = impatient(serving(|mut client| {
        let length = 64 << 10;
        let range = format!("Content-Range: bytes 0-{}/{length}\r\n", length - 1);
        answer(
            &mut client,
            head("206 Partial Content", length, &range).as_bytes(),
        );
        while client.write_all(b"x").is_ok() {
            thread::park_timeout(Duration::from_millis(50));
        }
    }));
    let result = store.get_range(&key("x"), 0..64 << 10);
    assert!(
        matches!(
            result,
            Err(StoreError::Remote {
                problem: RemoteProblem::TimedOut,
                ..
            })
        ),
        "{result:?}"
    );
}

#[test]
fn a_length_is_not_believed_before_it_is_checked() {
    const HUGE: u64 = 1 << 60;
    let whole = impatient(serving(|mut client| {
        answer(&mut client, head("200 OK", HUGE, "").as_bytes());
    }));
    match whole.get(&key("x")) {
        Err(StoreError::TooLarge { size_bytes, .. }) => assert_eq!(size_bytes, HUGE),
        other => panic!("{other:?}"),
    }
    let part = impatient(serving(|mut client| {
        let range = format!("Content-Range: bytes 0-{}/{HUGE}\r\n", HUGE - 1);
        answer(
            &mut client,
            head("206 Partial Content", HUGE, &range).as_bytes(),
        );
    }));
    assert!(part.get_range(&key("x"), 0..9).is_err());
    assert!(part.get_start(&key("x"), 9).is_err());
}
