//! libpq behind safe types: the only place of this crate that calls C.
//!
//! Nothing here knows SQL or backups. Each type owns one libpq object and frees it; no pointer leaves the module.
//! Functions are those of `src/interfaces/libpq` (version 18, compiled in, see `docs/decisions/0002-postgres-client.md`).
#![expect(
    unsafe_code,
    reason = "libpq is a C library; every call is confined to this module"
)]

use std::ffi::{CStr, CString, NulError, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

// Linked for its vendored build: libpq's TLS and SCRAM need OpenSSL, and nothing else refers to the crate.
use openssl_sys as _;
use pq_sys as pq;

/// `PG_DIAG_SEVERITY_NONLOCALIZED`, `postgres_ext.h`.
const DIAG_SEVERITY: c_int = b'V' as c_int;
/// `PG_DIAG_SQLSTATE`.
const DIAG_SQLSTATE: c_int = b'C' as c_int;
/// `PG_DIAG_MESSAGE_PRIMARY`.
const DIAG_MESSAGE: c_int = b'M' as c_int;
/// `PG_DIAG_MESSAGE_DETAIL`.
const DIAG_DETAIL: c_int = b'D' as c_int;
/// `PG_DIAG_MESSAGE_HINT`.
const DIAG_HINT: c_int = b'H' as c_int;

/// What a socket must become for an exchange to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Wait until the socket can be read.
    Reading,
    /// Wait until the socket can be written.
    Writing,
    /// The exchange is over and went well.
    Done,
    /// The exchange is over and went wrong: see the error message.
    Failed,
}

impl From<pq::PostgresPollingStatusType> for Progress {
    fn from(status: pq::PostgresPollingStatusType) -> Progress {
        match status {
            pq::PostgresPollingStatusType::PGRES_POLLING_READING => Progress::Reading,
            pq::PostgresPollingStatusType::PGRES_POLLING_WRITING => Progress::Writing,
            pq::PostgresPollingStatusType::PGRES_POLLING_OK => Progress::Done,
            _ => Progress::Failed,
        }
    }
}

/// Keywords and values as libpq takes them: C strings and, at the end, a null pointer.
struct Parameters {
    /// Owns what `keywords` and `values` point to.
    _strings: Vec<(CString, CString)>,
    keywords: Vec<*const c_char>,
    values: Vec<*const c_char>,
}

impl Parameters {
    fn new(pairs: &[(&str, &str)]) -> Result<Parameters, NulError> {
        let mut strings = Vec::with_capacity(pairs.len());
        for (keyword, value) in pairs {
            strings.push((CString::new(*keyword)?, CString::new(*value)?));
        }
        let keywords = strings
            .iter()
            .map(|(keyword, _)| keyword.as_ptr())
            .chain([ptr::null()])
            .collect();
        let values = strings
            .iter()
            .map(|(_, value)| value.as_ptr())
            .chain([ptr::null()])
            .collect();
        Ok(Parameters {
            _strings: strings,
            keywords,
            values,
        })
    }
}

/// Messages that came outside an answer; shared, so that its address stays while the connection lives.
type Notices = Mutex<Vec<String>>;

/// A `PGconn`, connected or not.
pub(crate) struct Session {
    raw: NonNull<pq::PGconn>,
    notices: Arc<Notices>,
}

// SAFETY: libpq allows a PGconn to be used from any thread, one at a time (libpq's manual, "Behavior in Threaded
// Programs"); every method that talks takes &mut self, and the read-only accessors do not change the object.
unsafe impl Send for Session {}

impl Session {
    /// Begins to connect (`PQconnectStartParams` with `expand_dbname`); drive it with [`Session::poll_connect`].
    ///
    /// # Errors
    /// When a keyword or value holds a NUL byte. Every other failure is a [`Session`] that is not [`Session::is_ok`].
    pub(crate) fn start(parameters: &[(&str, &str)]) -> Result<Session, NulError> {
        let parameters = Parameters::new(parameters)?;
        // SAFETY: both arrays end in a null pointer and outlive the call, which copies what it keeps.
        let raw = unsafe {
            pq::PQconnectStartParams(parameters.keywords.as_ptr(), parameters.values.as_ptr(), 1)
        };
        Ok(Session::own(raw))
    }

    /// Connects and waits (`PQconnectdbParams` with `expand_dbname`), by libpq's own rules for several hosts and
    /// addresses.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub(crate) fn connect(parameters: &[(&str, &str)]) -> Result<Session, NulError> {
        let parameters = Parameters::new(parameters)?;
        // SAFETY: as in `start`.
        let raw = unsafe {
            pq::PQconnectdbParams(parameters.keywords.as_ptr(), parameters.values.as_ptr(), 1)
        };
        Ok(Session::own(raw))
    }

    fn own(raw: *mut pq::PGconn) -> Session {
        let Some(raw) = NonNull::new(raw) else {
            // libpq returns null only when malloc fails, as Rust's own allocator aborts.
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<usize>())
        };
        let notices: Arc<Notices> = Arc::default();
        let argument = Arc::as_ptr(&notices).cast_mut().cast::<c_void>();
        // SAFETY: the receiver gets the address of the shared list, which lives as long as the PGconn: `Drop` finishes
        // the PGconn before the list is freed.
        unsafe { pq::PQsetNoticeReceiver(raw.as_ptr(), Some(receive_notice), argument) };
        Session { raw, notices }
    }

    /// `PQconnectPoll`: takes the next step of connecting.
    pub(crate) fn poll_connect(&mut self) -> Progress {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQconnectPoll(self.raw.as_ptr()) }.into()
    }

    /// Whether the connection stands (`PQstatus` = `CONNECTION_OK`).
    pub(crate) fn is_ok(&self) -> bool {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQstatus(self.raw.as_ptr()) == pq::ConnStatusType::CONNECTION_OK }
    }

    /// Whether the connection is known to be dead (`PQstatus` = `CONNECTION_BAD`).
    pub(crate) fn is_bad(&self) -> bool {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQstatus(self.raw.as_ptr()) == pq::ConnStatusType::CONNECTION_BAD }
    }

    /// Makes error texts carry the SQLSTATE (`PQERRORS_VERBOSE`), or not (`PQERRORS_DEFAULT`).
    pub(crate) fn set_verbose_errors(&mut self, verbose: bool) {
        let verbosity = if verbose {
            pq::PGVerbosity::PQERRORS_VERBOSE
        } else {
            pq::PGVerbosity::PQERRORS_DEFAULT
        };
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQsetErrorVerbosity(self.raw.as_ptr(), verbosity) };
    }

    /// `PQerrorMessage`, trimmed.
    pub(crate) fn error_message(&self) -> String {
        // SAFETY: the string belongs to the PGconn and is copied before anything else can change it.
        unsafe { text(pq::PQerrorMessage(self.raw.as_ptr())) }
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// Whether the server asked for a password and none was there.
    pub(crate) fn needs_password(&self) -> bool {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQconnectionNeedsPassword(self.raw.as_ptr()) == 1 }
    }

    /// The socket, while there is one.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the pointer is valid for the life of self.
        let descriptor = unsafe { pq::PQsocket(self.raw.as_ptr()) };
        // SAFETY: libpq keeps the descriptor open until the PGconn is used again, which needs &mut self.
        (descriptor >= 0).then(|| unsafe { BorrowedFd::borrow_raw(descriptor) })
    }

    /// `PQserverVersion`: 150018 for 15.18.
    pub(crate) fn server_version(&self) -> i32 {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQserverVersion(self.raw.as_ptr()) }
    }

    /// `PQbackendPID`.
    pub(crate) fn backend_pid(&self) -> i32 {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQbackendPID(self.raw.as_ptr()) }
    }

    /// Whether TLS protects the connection.
    pub(crate) fn uses_tls(&self) -> bool {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQsslInUse(self.raw.as_ptr()) == 1 }
    }

    /// Host, port, database and user of the connection, in this order; empty where unknown.
    pub(crate) fn address(&self) -> [String; 4] {
        // SAFETY: the strings belong to the PGconn and are copied at once.
        unsafe {
            let raw = self.raw.as_ptr();
            [
                pq::PQhost(raw),
                pq::PQport(raw),
                pq::PQdb(raw),
                pq::PQuser(raw),
            ]
            .map(|value| text(value).unwrap_or_default())
        }
    }

    /// `PQconninfo`: keywords and values in use, without those that are unset.
    pub(crate) fn options(&self) -> Vec<(String, String)> {
        // SAFETY: the array is freed by `own_options`.
        unsafe { own_options(pq::PQconninfo(self.raw.as_ptr())) }
    }

    /// The messages that came outside an answer since the last call.
    pub(crate) fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `PQsendQueryParams` with text parameters and text results. `false` when libpq refuses: see the error message.
    pub(crate) fn send(&mut self, sql: &CStr, parameters: &[Option<CString>]) -> bool {
        let values: Vec<*const c_char> = parameters
            .iter()
            .map(|value| value.as_ref().map_or(ptr::null(), |value| value.as_ptr()))
            .collect();
        let Ok(count) = c_int::try_from(values.len()) else {
            return false;
        };
        // SAFETY: `values` holds `count` pointers to C strings that outlive the call; null types, lengths and formats
        // mean "inferred", "text" and "text".
        let sent = unsafe {
            pq::PQsendQueryParams(
                self.raw.as_ptr(),
                sql.as_ptr(),
                count,
                ptr::null(),
                values.as_ptr(),
                ptr::null(),
                ptr::null(),
                0,
            )
        };
        sent == 1
    }

    /// `PQsendQuery`: one or several statements without parameters.
    pub(crate) fn send_simple(&mut self, sql: &CStr) -> bool {
        // SAFETY: the string outlives the call.
        unsafe { pq::PQsendQuery(self.raw.as_ptr(), sql.as_ptr()) == 1 }
    }

    /// Reads what the socket has (`PQconsumeInput`). `false` when the connection broke.
    pub(crate) fn consume_input(&mut self) -> bool {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQconsumeInput(self.raw.as_ptr()) == 1 }
    }

    /// Whether the next [`Session::next_answer`] would wait (`PQisBusy`).
    pub(crate) fn is_busy(&mut self) -> bool {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQisBusy(self.raw.as_ptr()) == 1 }
    }

    /// `PQgetResult`: the next answer to what was sent, `None` after the last.
    pub(crate) fn next_answer(&mut self) -> Option<Answer> {
        // SAFETY: the result is owned by the Answer, which clears it.
        NonNull::new(unsafe { pq::PQgetResult(self.raw.as_ptr()) }).map(Answer)
    }

    /// `PQsetnonblocking`: whether what is sent may wait in libpq's buffer instead of blocking. `false` when libpq refuses.
    pub(crate) fn set_nonblocking(&mut self, nonblocking: bool) -> bool {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQsetnonblocking(self.raw.as_ptr(), c_int::from(nonblocking)) == 0 }
    }

    /// `PQgetCopyData` that does not wait: the next message of a COPY, as far as the input consumed so far holds one.
    pub(crate) fn next_copy_data(&mut self) -> CopyStep {
        let mut buffer: *mut c_char = ptr::null_mut();
        // SAFETY: libpq stores null or a buffer of its own, which the CopyData frees.
        let length = unsafe { pq::PQgetCopyData(self.raw.as_ptr(), &raw mut buffer, 1) };
        match (usize::try_from(length), NonNull::new(buffer)) {
            (Ok(0), _) => CopyStep::Nothing,
            (Ok(length), Some(start)) => CopyStep::Data(CopyData { start, length }),
            _ if length == -1 => CopyStep::End,
            _ => CopyStep::Failed,
        }
    }

    /// `PQputCopyData`. `false` when it was not taken: see [`Session::is_bad`].
    pub(crate) fn put_copy_data(&mut self, message: &[u8]) -> bool {
        let Ok(length) = c_int::try_from(message.len()) else {
            return false;
        };
        // SAFETY: libpq reads `length` bytes, which outlive the call, and copies them.
        unsafe { pq::PQputCopyData(self.raw.as_ptr(), message.as_ptr().cast(), length) == 1 }
    }

    /// `PQputCopyEnd` without an error.
    pub(crate) fn put_copy_end(&mut self) -> bool {
        // SAFETY: the pointer is valid for the life of self; a null message means success.
        unsafe { pq::PQputCopyEnd(self.raw.as_ptr(), ptr::null()) == 1 }
    }

    /// `PQflush`: `Some(true)` when everything is sent, `Some(false)` when some waits for the socket, `None` when the
    /// connection broke.
    pub(crate) fn flush(&mut self) -> Option<bool> {
        // SAFETY: the pointer is valid for the life of self.
        match unsafe { pq::PQflush(self.raw.as_ptr()) } {
            0 => Some(true),
            1 => Some(false),
            _ => None,
        }
    }

    /// Makes what can cancel the running statement from another thread (`PQcancelCreate`).
    pub(crate) fn cancellation(&self) -> Option<Cancellation> {
        // SAFETY: the pointer is valid; the copy that libpq makes is owned by the Cancellation.
        NonNull::new(unsafe { pq::PQcancelCreate(self.raw.as_ptr()) }).map(Cancellation)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: the pointer came from libpq and is not used again.
        unsafe { pq::PQfinish(self.raw.as_ptr()) }
    }
}

/// Called by libpq for each notice.
///
/// # Safety
/// `argument` is the address of the session's [`Notices`], `result` a result that libpq frees after the call.
unsafe extern "C" fn receive_notice(argument: *mut c_void, result: *const pq::PGresult) {
    // SAFETY: see above; `own` passed the address of a list that outlives the PGconn.
    let notices = unsafe { &*argument.cast::<Notices>() };
    // SAFETY: the result is valid for the duration of the call.
    if let Some(message) = unsafe { text(pq::PQresultErrorField(result, DIAG_MESSAGE)) } {
        notices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(message);
    }
}

/// What an [`Answer`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerKind {
    /// Rows, or none with a command's completion.
    Rows,
    /// An error: see [`Answer::field`].
    Error,
    /// The stream of a COPY: only replication has one.
    Copy,
}

/// A field of an error answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field {
    /// `ERROR`, `FATAL`, `PANIC`; never translated.
    Severity,
    /// Five characters.
    SqlState,
    /// The primary message.
    Message,
    /// The detail.
    Detail,
    /// The hint.
    Hint,
}

/// A `PGresult`.
pub(crate) struct Answer(NonNull<pq::PGresult>);

// SAFETY: a PGresult is independent of its connection and not changed after it was handed out (libpq's manual, "Behavior
// in Threaded Programs").
unsafe impl Send for Answer {}

impl Answer {
    pub(crate) fn kind(&self) -> AnswerKind {
        use pq::ExecStatusType as S;
        // SAFETY: the pointer is valid for the life of self.
        match unsafe { pq::PQresultStatus(self.0.as_ptr()) } {
            S::PGRES_EMPTY_QUERY
            | S::PGRES_COMMAND_OK
            | S::PGRES_TUPLES_OK
            | S::PGRES_SINGLE_TUPLE => AnswerKind::Rows,
            S::PGRES_COPY_IN | S::PGRES_COPY_OUT | S::PGRES_COPY_BOTH => AnswerKind::Copy,
            _ => AnswerKind::Error,
        }
    }

    /// A field of an error.
    pub(crate) fn field(&self, field: Field) -> Option<String> {
        let code = match field {
            Field::Severity => DIAG_SEVERITY,
            Field::SqlState => DIAG_SQLSTATE,
            Field::Message => DIAG_MESSAGE,
            Field::Detail => DIAG_DETAIL,
            Field::Hint => DIAG_HINT,
        };
        // SAFETY: the string belongs to the result and is copied.
        unsafe { text(pq::PQresultErrorField(self.0.as_ptr(), code)) }
    }

    /// The whole error text, for errors that libpq itself raised.
    pub(crate) fn error_message(&self) -> String {
        // SAFETY: the string belongs to the result and is copied.
        unsafe { text(pq::PQresultErrorMessage(self.0.as_ptr())) }
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    pub(crate) fn rows(&self) -> usize {
        // SAFETY: the pointer is valid for the life of self.
        usize::try_from(unsafe { pq::PQntuples(self.0.as_ptr()) }).unwrap_or(0)
    }

    pub(crate) fn columns(&self) -> usize {
        // SAFETY: the pointer is valid for the life of self.
        usize::try_from(unsafe { pq::PQnfields(self.0.as_ptr()) }).unwrap_or(0)
    }

    /// The bytes of a value; `None` for NULL and outside the answer.
    pub(crate) fn value(&self, row: usize, column: usize) -> Option<&[u8]> {
        if row >= self.rows() || column >= self.columns() {
            return None;
        }
        let (row, column) = (c_int::try_from(row).ok()?, c_int::try_from(column).ok()?);
        // SAFETY: row and column are inside the answer; value and length belong to the result, which lives as long as
        // the borrow.
        unsafe {
            if pq::PQgetisnull(self.0.as_ptr(), row, column) == 1 {
                return None;
            }
            let start = pq::PQgetvalue(self.0.as_ptr(), row, column).cast::<u8>();
            let length = usize::try_from(pq::PQgetlength(self.0.as_ptr(), row, column)).ok()?;
            Some(std::slice::from_raw_parts(start, length))
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from libpq and is not used again.
        unsafe { pq::PQclear(self.0.as_ptr()) }
    }
}

/// What [`Session::next_copy_data`] found.
pub(crate) enum CopyStep {
    /// One whole message.
    Data(CopyData),
    /// Not yet a whole message.
    Nothing,
    /// The other side has ended the COPY, or an error did: the next answer says.
    End,
    /// The connection broke.
    Failed,
}

/// One message of a COPY, in libpq's buffer.
pub(crate) struct CopyData {
    start: NonNull<c_char>,
    length: usize,
}

// SAFETY: the buffer belongs to this value alone.
unsafe impl Send for CopyData {}

impl CopyData {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: libpq handed out a buffer of this length, and nobody else knows it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast::<u8>(), self.length) }
    }
}

impl Drop for CopyData {
    fn drop(&mut self) {
        // SAFETY: the buffer came from libpq's malloc and is not used again.
        unsafe { pq::PQfreemem(self.start.as_ptr().cast()) }
    }
}

/// A `PGcancelConn`: one cancel request, over a connection of its own (encrypted as the session is).
pub(crate) struct Cancellation(NonNull<pq::PGcancelConn>);

// SAFETY: a PGcancelConn is a PGconn of its own, independent of the session it was made from.
unsafe impl Send for Cancellation {}

impl Cancellation {
    /// Begins the request. `false` when that is not possible.
    pub(crate) fn start(&mut self) -> bool {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQcancelStart(self.0.as_ptr()) == 1 }
    }

    /// Takes the next step.
    pub(crate) fn poll(&mut self) -> Progress {
        // SAFETY: the pointer is valid for the life of self.
        unsafe { pq::PQcancelPoll(self.0.as_ptr()) }.into()
    }

    /// The socket of the request, while there is one.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the pointer is valid for the life of self.
        let descriptor = unsafe { pq::PQcancelSocket(self.0.as_ptr()) };
        // SAFETY: libpq keeps the descriptor open until the object is used again, which needs &mut self.
        (descriptor >= 0).then(|| unsafe { BorrowedFd::borrow_raw(descriptor) })
    }

    /// Why it failed.
    pub(crate) fn error_message(&self) -> String {
        // SAFETY: the string belongs to the object and is copied.
        unsafe { text(pq::PQcancelErrorMessage(self.0.as_ptr())) }
            .unwrap_or_default()
            .trim()
            .to_owned()
    }
}

impl Drop for Cancellation {
    fn drop(&mut self) {
        // SAFETY: the pointer came from libpq and is not used again.
        unsafe { pq::PQcancelFinish(self.0.as_ptr()) }
    }
}

/// The keywords and values that a connection string itself sets (`PQconninfoParse`), no defaults added.
///
/// # Errors
/// libpq's message, which may quote pieces of the string: the caller must not show it unread.
pub(crate) fn parse_conninfo(conninfo: &str) -> Result<Vec<(String, String)>, String> {
    let Ok(conninfo) = CString::new(conninfo) else {
        return Err("it holds a NUL byte".to_owned());
    };
    let mut error: *mut c_char = ptr::null_mut();
    // SAFETY: the string outlives the call; the array is freed by `own_options`, the message below.
    let options = unsafe { pq::PQconninfoParse(conninfo.as_ptr(), &raw mut error) };
    if options.is_null() {
        // SAFETY: libpq allocated the message (or left null when out of memory); PQfreemem accepts both.
        return Err(unsafe {
            let message = text(error).unwrap_or_default();
            pq::PQfreemem(error.cast());
            message.trim().to_owned()
        });
    }
    // SAFETY: not null, from libpq, and not used again.
    Ok(unsafe { own_options(options) })
}

/// Copies an option array and frees it.
///
/// # Safety
/// `options` is null or an array of libpq's that nobody else frees.
unsafe fn own_options(options: *mut pq::PQconninfoOption) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut current = options;
    if !options.is_null() {
        // SAFETY: the array ends with an entry whose keyword is null; strings are copied before it is freed.
        unsafe {
            while !(*current).keyword.is_null() {
                if let (Some(keyword), Some(value)) =
                    (text((*current).keyword), text((*current).val))
                {
                    pairs.push((keyword, value));
                }
                current = current.add(1);
            }
            pq::PQconninfoFree(options);
        }
    }
    pairs
}

/// Copies a C string; bytes that are not UTF-8 are replaced.
///
/// # Safety
/// `pointer` is null or a valid C string for the duration of the call.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: see above.
    (!pointer.is_null()).then(|| {
        unsafe { CStr::from_ptr(pointer) }
            .to_string_lossy()
            .into_owned()
    })
}
