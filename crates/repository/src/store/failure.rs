//! What a failed request to an object store means, and whether to ask again.
//!
//! The object-store library keeps HTTP status and body inside its error texts; they are taken apart here, once, and
//! nothing of them is shown but codes that the server has from its own manual.

use std::error::Error as StdError;

use object_store::client::{HttpError, HttpErrorKind};

use crate::error::RemoteProblem;

/// One failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) again: Again,
    /// Whether the request may have had its effect all the same.
    pub(super) ambiguous: bool,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    NotFound,
    AlreadyExists,
    Precondition,
    /// The object ends before the range does.
    RangeBeyondEnd,
    /// The object has more bytes than are read.
    TooLarge {
        size_bytes: u64,
        limit_bytes: u64,
    },
    Problem(RemoteProblem),
}

/// Whether another attempt makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    No,
    Yes,
    /// For the full time only where this store has answered before; else the address is more likely wrong.
    IfProven,
}

impl Failure {
    fn new(cause: Cause, again: Again, ambiguous: bool) -> Failure {
        Failure {
            cause,
            again,
            ambiguous,
        }
    }

    fn problem(problem: RemoteProblem) -> Failure {
        Failure::new(Cause::Problem(problem), Again::No, false)
    }

    /// The answer did not come, or stopped coming.
    pub(super) fn timed_out() -> Failure {
        Failure::new(Cause::Problem(RemoteProblem::TimedOut), Again::Yes, true)
    }

    /// The body ended early.
    pub(super) fn torn() -> Failure {
        Failure::new(
            Cause::Problem(RemoteProblem::ConnectionLost),
            Again::Yes,
            true,
        )
    }

    /// The object is longer than what is read.
    pub(super) fn too_large(size_bytes: u64, limit_bytes: u64) -> Failure {
        let cause = Cause::TooLarge {
            size_bytes,
            limit_bytes,
        };
        Failure::new(cause, Again::No, false)
    }

    /// The object ends before the range does.
    pub(super) fn beyond_end() -> Failure {
        Failure::new(Cause::RangeBeyondEnd, Again::No, false)
    }
}

/// Names the host in messages about connections.
pub(super) fn classify(error: &object_store::Error, endpoint: &str) -> Failure {
    let text = chain(error);
    let status = status(&text);
    let code = code(&text);
    match error {
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            return Failure::problem(RemoteProblem::NoConditionalWrites);
        }
        object_store::Error::Precondition { .. } => {
            return Failure::new(Cause::Precondition, Again::No, false);
        }
        _ => {}
    }
    if let Some(failure) = by_code(&code, &text) {
        return failure;
    }
    match error {
        object_store::Error::NotFound { .. } => {
            return Failure::new(Cause::NotFound, Again::No, false);
        }
        object_store::Error::AlreadyExists { .. } => {
            return Failure::new(Cause::AlreadyExists, Again::No, false);
        }
        object_store::Error::PermissionDenied { .. } => {
            return Failure::problem(RemoteProblem::Forbidden);
        }
        object_store::Error::Unauthenticated { .. } => {
            return Failure::problem(RemoteProblem::BadCredentials(code));
        }
        _ => {}
    }
    if let Some(status) = status {
        return by_status(status, code, &text);
    }
    if text.contains("redirect without LOCATION") {
        return Failure::problem(RemoteProblem::WrongRegion(region(&text)));
    }
    if text.contains("169.254.169.254")
        || text.contains("169.254.170.2")
        || text.contains("metadata.google.internal")
    {
        // No role here. The metadata service of a real instance may be slow, so ask again for a while.
        return Failure::new(
            Cause::Problem(RemoteProblem::NoCredentials),
            Again::IfProven,
            false,
        );
    }
    connection(error, &text, endpoint)
}

fn by_code(code: &str, text: &str) -> Option<Failure> {
    let bad = || Failure::problem(RemoteProblem::BadCredentials(code.to_owned()));
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" => Failure::problem(RemoteProblem::BucketMissing),
        "AccessDenied"
        | "AllAccessDisabled"
        | "AuthorizationPermissionMismatch"
        | "AccountProblem" => Failure::problem(RemoteProblem::Forbidden),
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "InvalidSecurity"
        | "AuthenticationFailed"
        | "NotSignedUp"
        | "MissingSecurityHeader" => bad(),
        "RequestTimeTooSkewed" => Failure::problem(RemoteProblem::ClockSkew),
        "AuthorizationHeaderMalformed" if text.contains("region") => {
            Failure::problem(RemoteProblem::WrongRegion(region(text)))
        }
        "PermanentRedirect" | "TemporaryRedirect" | "IllegalLocationConstraintException" => {
            Failure::problem(RemoteProblem::WrongRegion(region(text)))
        }
        "InvalidObjectState" | "BlobArchived" => Failure::problem(RemoteProblem::Archived),
        "NotImplemented" => Failure::problem(RemoteProblem::NoConditionalWrites),
        // Another conditional write is under way: who wins is not settled yet.
        "ConditionalRequestConflict" | "OperationAborted" => Failure::new(
            Cause::Problem(RemoteProblem::Unavailable(409)),
            Again::Yes,
            false,
        ),
        "RequestTimeout" => Failure::timed_out(),
        "SlowDown" | "InternalError" | "ServiceUnavailable" | "ServerBusy"
        | "OperationTimedOut" => Failure::new(
            Cause::Problem(RemoteProblem::Unavailable(503)),
            Again::Yes,
            true,
        ),
        "BlobNotFound" | "NoSuchKey" | "NoSuchUpload" => {
            Failure::new(Cause::NotFound, Again::No, false)
        }
        _ => return None,
    })
}

fn by_status(status: u16, code: String, text: &str) -> Failure {
    match status {
        408 => Failure::timed_out(),
        429 => Failure::new(
            Cause::Problem(RemoteProblem::Unavailable(status)),
            Again::Yes,
            false,
        ),
        416 => Failure::beyond_end(),
        501 => Failure::problem(RemoteProblem::NoConditionalWrites),
        500..=599 => Failure::new(
            Cause::Problem(RemoteProblem::Unavailable(status)),
            Again::Yes,
            true,
        ),
        401 => Failure::problem(RemoteProblem::BadCredentials(code)),
        300..=399 => Failure::problem(RemoteProblem::WrongRegion(region(text))),
        _ => {
            let code = if code.is_empty() {
                String::new()
            } else {
                format!(" ({code})")
            };
            Failure::problem(RemoteProblem::Other(format!(
                "the server answers HTTP status {status}{code}"
            )))
        }
    }
}

fn connection(error: &object_store::Error, text: &str, endpoint: &str) -> Failure {
    let lower = text.to_lowercase();
    if lower.contains("dns error") || lower.contains("failed to lookup") {
        let problem = RemoteProblem::NameNotResolved(host(endpoint).to_owned());
        return Failure::new(Cause::Problem(problem), Again::IfProven, false);
    }
    // Only while connecting: a server that hangs up later without a farewell ("close_notify") also speaks of TLS.
    let connecting = http_error(error).map(HttpError::kind) == Some(HttpErrorKind::Connect);
    let about_tls = ["certificate", "tls", "received corrupt message"]
        .iter()
        .any(|word| lower.contains(word));
    if connecting && about_tls && !lower.contains("close_notify") {
        return Failure::problem(RemoteProblem::Tls(tls_reason(error)));
    }
    // The library's own checks of a partial answer against what was asked for.
    if text.contains("Wanted range starting at")
        || (text.contains("Requested ") && text.contains(", got "))
    {
        return Failure::beyond_end();
    }
    if text.contains("non-partial response") {
        return Failure::problem(RemoteProblem::Other("the server ignores ranges".to_owned()));
    }
    match http_error(error).map(HttpError::kind) {
        Some(HttpErrorKind::Connect) => {
            let problem = RemoteProblem::Unreachable(endpoint.to_owned());
            Failure::new(Cause::Problem(problem), Again::IfProven, false)
        }
        Some(HttpErrorKind::Timeout) => Failure::timed_out(),
        Some(_) => Failure::torn(),
        None => {
            // An answer that makes no sense: cut in the middle, or from something that is no object store.
            let problem = RemoteProblem::Other("the server's answer was not understood".to_owned());
            Failure::new(Cause::Problem(problem), Again::IfProven, true)
        }
    }
}

fn host(endpoint: &str) -> &str {
    let rest = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host)
}

/// The texts of an error and its sources, one a line.
fn chain(error: &object_store::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        text.push_str(&error.to_string());
        text.push('\n');
        next = error.source();
    }
    text
}

fn http_error(error: &object_store::Error) -> Option<&HttpError> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<HttpError>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The last text of the chain, which the TLS library wrote, and which holds certificate names but never keys.
fn tls_reason(error: &object_store::Error) -> String {
    let mut last: &(dyn StdError + 'static) = error;
    while let Some(deeper) = last.source() {
        last = deeper;
    }
    let text = last.to_string();
    match text.as_str() {
        text if text.contains("UnknownIssuer") => {
            "the certificate's issuer is not trusted".to_owned()
        }
        text if text.contains("CaUsedAsEndEntity") => {
            "the server shows an authority's certificate (CA:TRUE) as its own".to_owned()
        }
        text if text.contains("UnsupportedCertVersion") => {
            "the certificate is of X.509 version 1".to_owned()
        }
        text if text.contains("corrupt message") => "the server does not speak TLS here".to_owned(),
        // Rustls says well which name was expected and which are there, or when it expired.
        text => text
            .trim_start_matches("invalid peer certificate: ")
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect(),
    }
}

/// "Server returned non-2xx status code: 503 Service Unavailable: ..."
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// `<Code>SlowDown</Code>` of S3, Google and Azure.
fn code(text: &str) -> String {
    element(text, "Code").unwrap_or_default()
}

fn region(text: &str) -> Option<String> {
    element(text, "Region")
}

/// A short word between tags; anything that is not a word of letters, digits and hyphens is not shown.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (word, _) = rest.split_once("</")?;
    let usable = word.len() <= 60 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (usable && !word.is_empty()).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: &str, body: &str) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: format!("Error performing GET http://h/b/k in 1ms - Server returned non-2xx status code: {status}: {body}").into(),
        }
    }

    #[track_caller]
    fn check(status: &str, body: &str, cause: Cause, again: Again) {
        let failure = classify(&answer(status, body), "https://s3.example");
        assert_eq!(
            (failure.cause, failure.again),
            (cause, again),
            "{status} {body}"
        );
    }

    #[test]
    fn answers_are_understood() {
        use RemoteProblem as P;
        let xml = |code: &str| {
            format!("<Error><Code>{code}</Code><Message>secret stuff</Message></Error>")
        };
        check(
            "404 Not Found",
            &xml("NoSuchBucket"),
            Cause::Problem(P::BucketMissing),
            Again::No,
        );
        check(
            "403 Forbidden",
            &xml("AccessDenied"),
            Cause::Problem(P::Forbidden),
            Again::No,
        );
        check(
            "403 Forbidden",
            &xml("SignatureDoesNotMatch"),
            Cause::Problem(P::BadCredentials("SignatureDoesNotMatch".into())),
            Again::No,
        );
        check(
            "400 Bad Request",
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region is wrong</Message><Region>eu-west-3</Region></Error>",
            Cause::Problem(P::WrongRegion(Some("eu-west-3".into()))),
            Again::No,
        );
        check(
            "503 Slow Down",
            &xml("SlowDown"),
            Cause::Problem(P::Unavailable(503)),
            Again::Yes,
        );
        check(
            "502 Bad Gateway",
            "<html>",
            Cause::Problem(P::Unavailable(502)),
            Again::Yes,
        );
        check(
            "429 Too Many Requests",
            "",
            Cause::Problem(P::Unavailable(429)),
            Again::Yes,
        );
        check(
            "409 Conflict",
            &xml("ConditionalRequestConflict"),
            Cause::Problem(P::Unavailable(409)),
            Again::Yes,
        );
        check(
            "416 Range Not Satisfiable",
            &xml("InvalidRange"),
            Cause::RangeBeyondEnd,
            Again::No,
        );
        check(
            "400 Bad Request",
            &xml("InvalidStorageClass"),
            Cause::Problem(P::Other(
                "the server answers HTTP status 400 (InvalidStorageClass)".into(),
            )),
            Again::No,
        );
    }

    #[test]
    fn only_words_of_an_answer_are_shown() {
        let failure = classify(
            &answer("400 Bad", "<Code>hunter2 and more</Code>"),
            "https://s3.example",
        );
        assert!(!format!("{failure:?}").contains("hunter2"));
    }

    #[test]
    fn hosts_are_cut_out() {
        assert_eq!(host("https://s3.example:9000/bucket"), "s3.example");
        assert_eq!(host("s3.example"), "s3.example");
    }
}
