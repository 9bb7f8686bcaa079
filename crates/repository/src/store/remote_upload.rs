//! A large object on its way into a bucket: parts, several under way at a time.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::multipart::PartId;
use object_store::{MultipartId, PutMultipartOptions, PutPayload};
use tokio::task::JoinSet;

use super::remote::{ABORT_TIME, Bucket, block_on, runtime};
use super::{Key, Upload};
use crate::error::StoreError;

/// After so many parts their size doubles, so that S3's 10,000 parts hold far more than we ever write, while every
/// object of usual size has parts of equal size, which some compatible stores insist on.
const PARTS_OF_ONE_SIZE: usize = 2_000;

/// An upload. What fits into one part is written by one conditional put.
pub(super) struct RemoteUpload {
    bucket: Arc<Bucket>,
    key: Key,
    buffer: BytesMut,
    sent_bytes: u64,
    begun: Option<Begun>,
}

/// A multipart upload that the server knows of. Aborted when dropped unfinished.
struct Begun {
    bucket: Arc<Bucket>,
    key: Key,
    id: MultipartId,
    tasks: JoinSet<Result<(usize, PartId), StoreError>>,
    parts: Vec<Option<PartId>>,
    finished: bool,
}

impl RemoteUpload {
    pub(super) fn new(bucket: Arc<Bucket>, key: Key) -> RemoteUpload {
        RemoteUpload {
            bucket,
            key,
            buffer: BytesMut::new(),
            sent_bytes: 0,
            begun: None,
        }
    }

    fn part_bytes(&self) -> usize {
        let sent = self.begun.as_ref().map_or(0, |begun| begun.parts.len());
        self.bucket.part_bytes << (sent / PARTS_OF_ONE_SIZE).min(4)
    }

    fn send_part(&mut self) -> Result<(), StoreError> {
        if self.begun.is_none() {
            self.begun = Some(Begun::new(self.bucket.clone(), self.key.clone())?);
        }
        let content = std::mem::take(&mut self.buffer).freeze();
        self.sent_bytes += content.len() as u64;
        match &mut self.begun {
            Some(begun) => begun.send(content),
            None => Ok(()),
        }
    }
}

impl Upload for RemoteUpload {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let part_bytes = self.part_bytes();
            if self.buffer.capacity() < part_bytes && self.begun.is_some() {
                // Further parts will be as large; the first may be the only one, and small.
                self.buffer.reserve(part_bytes - self.buffer.len());
            }
            let (now, later) = bytes.split_at(bytes.len().min(part_bytes - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == part_bytes {
                self.send_part()?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<u64, StoreError> {
        let size = self.sent_bytes + self.buffer.len() as u64;
        if self.begun.is_none() {
            let content = std::mem::take(&mut self.buffer).freeze();
            block_on(self.bucket.create(&self.key, &content))?;
            return Ok(size);
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        match self.begun.take() {
            Some(begun) => begun.complete(size),
            None => Ok(size),
        }
    }
}

impl Begun {
    fn new(bucket: Arc<Bucket>, key: Key) -> Result<Begun, StoreError> {
        let path = bucket.path(&key);
        let outcome = block_on(bucket.retry.run(Some(0), || async {
            let options = PutMultipartOptions {
                attributes: bucket.attributes.clone(),
                ..PutMultipartOptions::default()
            };
            let begun = bucket
                .client
                .parts
                .create_multipart_opts(&path, options)
                .await;
            begun.map_err(|error| bucket.classify(error))
        }));
        let id = outcome
            .result
            .map_err(|failure| bucket.error("write", &key, failure, outcome.attempts))?;
        Ok(Begun {
            bucket,
            key,
            id,
            tasks: JoinSet::new(),
            parts: Vec::new(),
            finished: false,
        })
    }

    /// Sends a part as soon as one of the places under way is free.
    fn send(&mut self, content: Bytes) -> Result<(), StoreError> {
        while self.tasks.len() >= self.bucket.concurrency {
            self.wait_for_one()?;
        }
        let index = self.parts.len();
        self.parts.push(None);
        let (bucket, key, id) = (self.bucket.clone(), self.key.clone(), self.id.clone());
        let task = async move {
            let path = bucket.path(&key);
            let attempt = || async {
                let payload = PutPayload::from_bytes(content.clone());
                let put = bucket
                    .client
                    .parts
                    .put_part(&path, &id, index, payload)
                    .await;
                put.map_err(|error| bucket.classify(error))
            };
            let outcome = bucket.retry.run(Some(content.len()), attempt).await;
            match outcome.result {
                Ok(part) => Ok((index, part)),
                Err(failure) => Err(bucket.error("write", &key, failure, outcome.attempts)),
            }
        };
        self.tasks.spawn_on(task, runtime().handle());
        Ok(())
    }

    fn wait_for_one(&mut self) -> Result<(), StoreError> {
        match block_on(self.tasks.join_next()) {
            Some(Ok(Ok((index, part)))) => {
                self.parts[index] = Some(part);
                Ok(())
            }
            Some(Ok(Err(error))) => Err(error),
            Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
            None => Ok(()),
        }
    }

    fn complete(mut self, size: u64) -> Result<u64, StoreError> {
        while !self.tasks.is_empty() {
            self.wait_for_one()?;
        }
        let parts: Vec<PartId> = self.parts.drain(..).flatten().collect();
        let bucket = self.bucket.clone();
        // Completing a multipart upload is not conditional anywhere, so look beforehand: the names are unique, and
        // whatever is there must not be overwritten.
        match block_on(bucket.size(&self.key)) {
            Ok(_) => {
                return Err(StoreError::AlreadyExists {
                    key: self.key.clone(),
                    location: bucket.location.clone(),
                });
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let path = bucket.path(&self.key);
        let outcome = block_on(bucket.retry.run(Some(0), || async {
            let completed = bucket
                .client
                .parts
                .complete_multipart(&path, &self.id, parts.clone())
                .await;
            completed.map_err(|error| bucket.classify(error))
        }));
        match outcome.result {
            Ok(_) => {}
            // The server may have forgotten the upload because an earlier attempt completed it. S3 then says "not
            // found", others say other things; the name was free a moment ago, so what lies there now is ours.
            Err(_)
                if outcome.ambiguous
                    && matches!(block_on(bucket.size(&self.key)), Ok(found) if found == size) => {}
            Err(failure) => {
                return Err(bucket.error("write", &self.key, failure, outcome.attempts));
            }
        }
        self.finished = true;
        Ok(size)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.tasks.abort_all();
        let path = self.bucket.path(&self.key);
        block_on(async {
            // A part that arrives after the abort would stay.
            while self.tasks.join_next().await.is_some() {}
            let aborted = self.bucket.client.parts.abort_multipart(&path, &self.id);
            // What cannot be aborted is invisible, and the bucket's lifecycle rule takes it.
            let _ = tokio::time::timeout(ABORT_TIME, aborted).await;
        });
    }
}
