//! Object stores: S3 and compatibles, Google Cloud Storage, Azure Blob Storage.
//!
//! The object-store library does the protocols; retries, timeouts, the reading of bodies and the question who won
//! after a lost answer are ours. Calls block; a small runtime of two threads, shared by all stores of the process,
//! moves the bytes.

use std::fmt;
use std::future::Future;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, PutResult, UpdateVersion,
};
use tokio::runtime::Runtime;

use super::connect::{Client, connect};
use super::failure::{Cause, Failure, classify};
use super::key::folder;
use super::options::StoreOptions;
use super::remote_upload::RemoteUpload;
use super::retry::{Outcome, Retry};
use super::{
    Key, LISTED_OBJECTS_LIMIT, ObjectInfo, ObjectVersion, SMALL_OBJECT_BYTES_LIMIT, Store, Upload,
    too_many,
};
use crate::error::{RemoteProblem, StoreError};
use crate::url::RepositoryUrl;

/// A body that comes slower is given up, however steadily it comes.
const SLOWEST_BYTES_PER_SECOND: u64 = 32 << 10;

/// A prefix of a bucket.
pub struct RemoteStore {
    bucket: Arc<Bucket>,
}

/// What the store and its uploads share.
pub(super) struct Bucket {
    pub(super) location: RepositoryUrl,
    prefix: String,
    pub(super) client: Client,
    pub(super) retry: Retry,
    pub(super) attributes: Attributes,
    pub(super) part_bytes: usize,
    pub(super) concurrency: usize,
}

impl RemoteStore {
    /// A store in a bucket. The bucket is not asked yet.
    ///
    /// # Errors
    /// [`StoreError::Options`] when the options do not fit together, or the address is a local directory's.
    pub fn new(
        location: &RepositoryUrl,
        options: &StoreOptions,
    ) -> Result<RemoteStore, StoreError> {
        let RepositoryUrl::Bucket {
            service,
            bucket,
            prefix,
        } = location
        else {
            return Err(StoreError::Options {
                location: location.clone(),
                reason: "it is a directory, not a bucket".to_owned(),
                hint: "write s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
            });
        };
        let mut attributes = Attributes::new();
        if let Some(class) = &options.storage_class {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
        // No thread is started before the first request: until then root may become another user.
        let client = connect(location, *service, bucket, options)?;
        Ok(RemoteStore {
            bucket: Arc::new(Bucket {
                location: location.clone(),
                prefix: prefix.clone(),
                client,
                retry: Retry::new(options.retry_for, options.patience),
                attributes,
                part_bytes: options.bounded_part_bytes(),
                concurrency: options.concurrency.clamp(1, 64),
            }),
        })
    }
}

/// The runtime of all stores of this process.
pub(super) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let built = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(4)
            .thread_name("store")
            .enable_all()
            .build();
        match built {
            Ok(runtime) => runtime,
            // No thread can be started: nothing of this program can go on.
            Err(error) => panic!("could not start the threads for object stores: {error}"),
        }
    })
}

/// Runs network work to its end on the calling thread.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    runtime().block_on(work)
}

impl Bucket {
    pub(super) fn path(&self, key: &Key) -> Path {
        Path::from(self.full(key.as_str()))
    }

    fn full(&self, rest: &str) -> String {
        if self.prefix.is_empty() {
            rest.to_owned()
        } else {
            format!("{}/{rest}", self.prefix)
        }
    }

    pub(super) fn classify(&self, error: object_store::Error) -> Failure {
        classify(&error, &self.client.endpoint)
    }

    /// Puts a failure into words.
    pub(super) fn error(
        &self,
        action: &'static str,
        key: &Key,
        failure: Failure,
        attempts: u32,
    ) -> StoreError {
        let (key, location) = (key.clone(), self.location.clone());
        match failure.cause {
            Cause::NotFound => StoreError::NotFound { key, location },
            Cause::AlreadyExists => StoreError::AlreadyExists { key, location },
            Cause::Precondition => StoreError::Conflict { key, location },
            Cause::TooLarge {
                size_bytes,
                limit_bytes,
            } => StoreError::TooLarge {
                key,
                location,
                size_bytes,
                limit_bytes,
            },
            Cause::RangeBeyondEnd => self.remote(
                action,
                format!("object \"{key}\""),
                RemoteProblem::Other("the range lies outside of the object".to_owned()),
                attempts,
            ),
            Cause::Problem(problem) => {
                self.remote(action, format!("object \"{key}\""), problem, attempts)
            }
        }
    }

    fn remote(
        &self,
        action: &'static str,
        object: String,
        problem: RemoteProblem,
        attempts: u32,
    ) -> StoreError {
        StoreError::Remote {
            action,
            object,
            location: self.location.clone(),
            problem,
            attempts,
        }
    }

    /// Runs attempts and puts what comes of them into words.
    async fn run<T, F>(
        &self,
        action: &'static str,
        key: &Key,
        body_bytes: Option<usize>,
        attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let outcome = self.retry.run(body_bytes, attempt).await;
        outcome
            .result
            .map_err(|failure| self.error(action, key, failure, outcome.attempts))
    }

    /// Waits for a part of an answer as long as patience goes.
    async fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::time::timeout(self.retry.patience, work)
            .await
            .map_err(|_| Failure::timed_out())
    }

    /// One attempt to read a whole object of at most `limit` bytes, to the last one.
    async fn read_whole(&self, path: &Path, limit: u64) -> Result<(Bytes, ObjectVersion), Failure> {
        let answer = self.ask(path, None).await?;
        if answer.meta.size > limit {
            return Err(Failure::too_large(answer.meta.size, limit));
        }
        let version = ObjectVersion {
            e_tag: answer.meta.e_tag.clone(),
            version: answer.meta.version.clone(),
        };
        Ok((self.drain(answer, limit).await?, version))
    }

    /// One attempt to read a range of an object, to the last byte.
    async fn read_range(&self, path: &Path, range: Range<u64>) -> Result<Bytes, Failure> {
        let answer = self.ask(path, Some(range.clone())).await?;
        if range.end > answer.meta.size {
            return Err(Failure::beyond_end());
        }
        let length = range.end - range.start;
        let content = self.drain(answer, length).await?;
        if content.len() as u64 == length {
            Ok(content)
        } else {
            Err(Failure::torn())
        }
    }

    /// One attempt to read the beginning of an object, and its size.
    async fn read_start(&self, path: &Path, limit: u64) -> Result<(Bytes, u64), Failure> {
        let answer = self.ask(path, Some(0..limit)).await?;
        let size = answer.meta.size;
        let content = self.drain(answer, limit).await?;
        if content.len() as u64 == size.min(limit) {
            Ok((content, size))
        } else {
            Err(Failure::torn())
        }
    }

    /// Asks for an object or a range of it, and waits for the answer's head.
    async fn ask(&self, path: &Path, range: Option<Range<u64>>) -> Result<GetResult, Failure> {
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let answer = self
            .wait(self.client.objects.get_opts(path, options))
            .await?;
        answer.map_err(|error| self.classify(error))
    }

    /// Reads the body of an answer, at most `limit` bytes, in a time that grows with its length.
    async fn drain(&self, answer: GetResult, limit: u64) -> Result<Bytes, Failure> {
        let announced = answer.range.end.saturating_sub(answer.range.start);
        if announced > limit {
            return Err(Failure::torn());
        }
        let time = self.retry.patience + Duration::from_secs(announced / SLOWEST_BYTES_PER_SECOND);
        tokio::time::timeout(time, self.collect(answer, announced))
            .await
            .unwrap_or_else(|_| Err(Failure::timed_out()))
    }

    async fn collect(&self, answer: GetResult, announced: u64) -> Result<Bytes, Failure> {
        let mut body = answer.into_stream();
        let mut first: Option<Bytes> = None;
        let mut content = BytesMut::new();
        while let Some(piece) = self.wait(body.next()).await? {
            let piece = piece.map_err(|error| self.classify(error))?;
            match first.take() {
                None if content.is_empty() => first = Some(piece),
                None => content.extend_from_slice(&piece),
                Some(held) => {
                    content.reserve(usize::try_from(announced).unwrap_or(0));
                    content.extend_from_slice(&held);
                    content.extend_from_slice(&piece);
                }
            }
            if content.len() as u64 > announced {
                return Err(Failure::torn());
            }
        }
        // One piece needs no copy.
        let content = first.unwrap_or_else(|| content.freeze());
        if content.len() as u64 == announced {
            Ok(content)
        } else {
            Err(Failure::torn())
        }
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<(Bytes, ObjectVersion), StoreError> {
        let path = self.path(key);
        self.run("read", key, None, || self.read_whole(&path, limit))
            .await
    }

    /// The version of an object if it holds just these bytes.
    async fn version_of(
        &self,
        key: &Key,
        content: &Bytes,
    ) -> Result<Option<ObjectVersion>, StoreError> {
        match self.get(key, content.len() as u64).await {
            Ok((found, version)) => Ok((found == *content).then_some(version)),
            Err(StoreError::TooLarge { .. } | StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn size(&self, key: &Key) -> Result<u64, StoreError> {
        let path = self.path(key);
        self.run("read", key, Some(0), || async {
            let found = self.client.objects.head(&path).await;
            found
                .map(|meta| meta.size)
                .map_err(|error| self.classify(error))
        })
        .await
    }

    async fn put(&self, key: &Key, content: &Bytes, mode: &PutMode) -> Outcome<PutResult> {
        let path = self.path(key);
        let attempt = || async {
            let options = PutOptions {
                mode: mode.clone(),
                attributes: self.attributes.clone(),
                ..PutOptions::default()
            };
            let payload = PutPayload::from_bytes(content.clone());
            let put = self.client.objects.put_opts(&path, payload, options).await;
            put.map_err(|error| self.classify(error))
        };
        self.retry.run(Some(content.len()), attempt).await
    }

    /// Writes an object if its name is free.
    pub(super) async fn create(&self, key: &Key, content: &Bytes) -> Result<(), StoreError> {
        let outcome = self.put(key, content, &PutMode::Create).await;
        let failure = match outcome.result {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        match failure.cause {
            // An earlier attempt may have been the one that took the name: the content says whose it is.
            Cause::AlreadyExists if outcome.ambiguous => {
                match self.version_of(key, content).await? {
                    Some(_) => Ok(()),
                    None => Err(self.error("write", key, failure, outcome.attempts)),
                }
            }
            _ => Err(self.error("write", key, failure, outcome.attempts)),
        }
    }

    async fn overwrite(&self, key: &Key, content: &Bytes) -> Result<ObjectVersion, StoreError> {
        let outcome = self.put(key, content, &PutMode::Overwrite).await;
        match outcome.result {
            Ok(put) => Ok(ObjectVersion {
                e_tag: put.e_tag,
                version: put.version,
            }),
            Err(failure) => Err(self.error("write", key, failure, outcome.attempts)),
        }
    }

    async fn replace(
        &self,
        key: &Key,
        content: &Bytes,
        expected: &ObjectVersion,
    ) -> Result<ObjectVersion, StoreError> {
        let mode = PutMode::Update(UpdateVersion {
            e_tag: expected.e_tag.clone(),
            version: expected.version.clone(),
        });
        let outcome = self.put(key, content, &mode).await;
        let failure = match outcome.result {
            Ok(put) => {
                return Ok(ObjectVersion {
                    e_tag: put.e_tag,
                    version: put.version,
                });
            }
            Err(failure) => failure,
        };
        if failure.cause == Cause::Precondition && outcome.ambiguous {
            let ours = self.version_of(key, content).await?;
            return ours.ok_or_else(|| self.error("write", key, failure, outcome.attempts));
        }
        // An object that is gone was changed by someone else as well.
        let failure = match failure.cause {
            Cause::NotFound => Failure {
                cause: Cause::Precondition,
                ..failure
            },
            _ => failure,
        };
        Err(self.error("write", key, failure, outcome.attempts))
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let path = self.path(key);
        let deleted = self
            .run("delete", key, Some(0), || async {
                self.client
                    .objects
                    .delete(&path)
                    .await
                    .map_err(|error| self.classify(error))
            })
            .await;
        match deleted {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// One page of a listing: objects, names of folders (only with `folders`), and where the next page begins.
    async fn page(
        &self,
        prefix: &str,
        folders: bool,
        token: Option<&str>,
    ) -> Result<Page, StoreError> {
        let inside = match (self.full(prefix), prefix.is_empty()) {
            (whole, _) if whole.is_empty() => None,
            (whole, _) => Some(format!("{}/", whole.trim_end_matches('/'))),
        };
        let attempt = || async {
            let options = PaginatedListOptions {
                delimiter: folders.then_some("/".into()),
                page_token: token.map(str::to_owned),
                ..PaginatedListOptions::default()
            };
            let listed = self
                .client
                .pages
                .list_paginated(inside.as_deref(), options)
                .await;
            listed.map_err(|error| self.classify(error))
        };
        let outcome = self.retry.run(Some(0), attempt).await;
        let listed = outcome.result.map_err(|failure| {
            let what = if prefix.is_empty() {
                "the repository".to_owned()
            } else {
                format!("folder \"{prefix}\"")
            };
            let problem = match failure.cause {
                Cause::Problem(problem) => problem,
                // A listing that finds no place to list in.
                _ => RemoteProblem::BucketMissing,
            };
            self.remote("list", what, problem, outcome.attempts)
        })?;
        let names = listed.result.objects.iter().map(|meta| &meta.location);
        let mut names = names.chain(&listed.result.common_prefixes);
        let is_inside = |name: &Path| name.as_ref().starts_with(inside.as_deref().unwrap_or(""));
        if let Some(stranger) = names.find(|name| !is_inside(name)) {
            let problem = format!("the server's listing names \"{stranger}\", which is not in it");
            let what = inside.unwrap_or_default();
            return Err(self.remote(
                "list",
                what,
                RemoteProblem::Other(problem),
                outcome.attempts,
            ));
        }
        let own = if self.prefix.is_empty() {
            String::new()
        } else {
            format!("{}/", self.prefix)
        };
        let relative = |path: &Path| path.as_ref().strip_prefix(own.as_str()).map(str::to_owned);
        Ok(Page {
            objects: listed
                .result
                .objects
                .into_iter()
                // Names that are no keys are strangers' objects.
                .filter_map(|meta| {
                    Some(ObjectInfo {
                        key: Key::new(relative(&meta.location)?).ok()?,
                        size_bytes: meta.size,
                    })
                })
                .collect(),
            folders: listed
                .result
                .common_prefixes
                .iter()
                .filter_map(|path| Some(Key::new(relative(path)?).ok()?.name().to_owned()))
                .collect(),
            next: listed.page_token,
        })
    }
}

struct Page {
    objects: Vec<ObjectInfo>,
    folders: Vec<String>,
    next: Option<String>,
}

impl Store for RemoteStore {
    fn location(&self) -> &RepositoryUrl {
        &self.bucket.location
    }

    fn endpoint(&self) -> Option<&str> {
        Some(&self.bucket.client.endpoint)
    }

    fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        block_on(self.bucket.get(key, SMALL_OBJECT_BYTES_LIMIT)).map(|(content, _)| content)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.end <= range.start {
            return Ok(Bytes::new());
        }
        let bucket = &self.bucket;
        let path = bucket.path(key);
        block_on(async {
            let outcome = bucket
                .retry
                .run(None, || bucket.read_range(&path, range.clone()))
                .await;
            match outcome.result {
                Ok(content) => Ok(content),
                Err(failure) if failure.cause == Cause::RangeBeyondEnd => {
                    let size_bytes = bucket.size(key).await?;
                    if size_bytes >= range.end {
                        return Err(bucket.error("read", key, failure, outcome.attempts));
                    }
                    Err(StoreError::Truncated {
                        key: key.clone(),
                        location: bucket.location.clone(),
                        wanted_end: range.end,
                        size_bytes,
                    })
                }
                Err(failure) => Err(bucket.error("read", key, failure, outcome.attempts)),
            }
        })
    }

    fn get_start(&self, key: &Key, limit: u64) -> Result<(Bytes, u64), StoreError> {
        let bucket = &self.bucket;
        let path = bucket.path(key);
        block_on(async {
            let limit = limit.max(1);
            let outcome = bucket
                .retry
                .run(None, || bucket.read_start(&path, limit))
                .await;
            match outcome.result {
                Ok(start) => Ok(start),
                // An empty object has no first byte.
                Err(failure) if failure.cause == Cause::RangeBeyondEnd => {
                    match bucket.size(key).await? {
                        0 => Ok((Bytes::new(), 0)),
                        _ => Err(bucket.error("read", key, failure, outcome.attempts)),
                    }
                }
                Err(failure) => Err(bucket.error("read", key, failure, outcome.attempts)),
            }
        })
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        block_on(self.bucket.size(key))
    }

    fn create(&self, key: &Key, content: Bytes) -> Result<(), StoreError> {
        block_on(self.bucket.create(key, &content))
    }

    fn get_versioned(&self, key: &Key) -> Result<Option<(Bytes, ObjectVersion)>, StoreError> {
        match block_on(self.bucket.get(key, SMALL_OBJECT_BYTES_LIMIT)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace(
        &self,
        key: &Key,
        content: Bytes,
        expected: &ObjectVersion,
    ) -> Result<ObjectVersion, StoreError> {
        block_on(self.bucket.replace(key, &content, expected))
    }

    fn overwrite(&self, key: &Key, content: Bytes) -> Result<ObjectVersion, StoreError> {
        block_on(self.bucket.overwrite(key, &content))
    }

    fn upload(&self, key: &Key) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(RemoteUpload::new(
            self.bucket.clone(),
            key.clone(),
        )))
    }

    fn list(
        &self,
        prefix: &str,
        found: &mut dyn FnMut(ObjectInfo) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let prefix = folder(prefix)?;
        let mut token = None;
        loop {
            // The callback runs outside of the runtime, so that it may use the store itself.
            let page = block_on(self.bucket.page(prefix, false, token.as_deref()))?;
            for object in page.objects {
                if found(object).is_break() {
                    return Ok(());
                }
            }
            match page.next {
                Some(next) => token = Some(next),
                None => return Ok(()),
            }
        }
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let prefix = folder(prefix)?;
        let mut names = Vec::new();
        let mut token = None;
        loop {
            let page = block_on(self.bucket.page(prefix, true, token.as_deref()))?;
            names.extend(page.folders);
            if names.len() > LISTED_OBJECTS_LIMIT {
                return Err(too_many(
                    &self.bucket.location,
                    prefix,
                    "folders",
                    LISTED_OBJECTS_LIMIT,
                ));
            }
            match page.next {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn sync(&self, _key: &Key) -> Result<(), StoreError> {
        // An object that a bucket shows is durable.
        Ok(())
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        block_on(self.bucket.delete(key))
    }

    fn remove_leftovers(&self, _prefix: &str) -> Result<u64, StoreError> {
        // Parts of dead uploads are invisible; the bucket's lifecycle rule for incomplete uploads takes them.
        Ok(0)
    }
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The library's own Debug would print settings.
        f.debug_struct("RemoteStore")
            .field("location", &self.bucket.location)
            .finish_non_exhaustive()
    }
}

/// How long a failed upload's parts are given to be thrown away.
pub(super) const ABORT_TIME: Duration = Duration::from_secs(10);
