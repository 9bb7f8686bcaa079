//! How `postgresql.conf`, `pg_hba.conf`, `pg_ident.conf` and `pg_hosts.conf` are spelled: their settings, and where they
//! name other files.
//!
//! Everything here works on bytes: a configuration file has no encoding, and a comment in Latin-1 is nothing unusual.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The ways in which configuration files are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Syntax {
    /// `postgresql.conf` and what it includes (src/backend/utils/misc/guc-file.l).
    Settings,
    /// `pg_hba.conf`, `pg_ident.conf` and what they include (`tokenize_auth_file` in src/backend/libpq/hba.c).
    Rules,
    /// `pg_hosts.conf` (since 19) and what it includes: as rules, but its fields name certificates (`parse_hosts_line` in
    /// src/backend/libpq/be-secure-common.c).
    Hosts,
    /// A file named as `@file` in rules, or in another such file: names and nothing else.
    List,
}

/// How one file names another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directive {
    /// `include`.
    Include,
    /// `include_if_exists`.
    IncludeIfExists,
    /// `include_dir`: all files of a directory whose names end in `.conf`.
    IncludeDir,
    /// `@file`.
    List,
}

/// A place in a line where another file or a directory is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// How.
    pub directive: Directive,
    /// What is named, as it stands there: perhaps relative to the file's directory.
    pub path: PathBuf,
    /// Where in the line the name stands, quotes and all.
    pub range: Range<usize>,
}

/// One setting of a line of `postgresql.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name, in lower case.
    pub name: String,
    /// Its value without quotes.
    pub value: Vec<u8>,
    /// Where in the line the value stands, quotes and all.
    pub range: Range<usize>,
}

/// The lines of a file, each with its end. In all but settings a backslash at the end of a line continues it on the next
/// one (`tokenize_auth_file` in src/backend/libpq/hba.c).
pub fn lines(syntax: Syntax, text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = 0;
        while end < rest.len() {
            let length = rest[end..].iter().position(|byte| *byte == b'\n');
            let begin = end;
            end = length.map_or(rest.len(), |length| begin + length + 1);
            if syntax == Syntax::Settings || !is_continued(&rest[begin..end]) {
                break;
            }
        }
        let (line, behind) = rest.split_at(end);
        rest = behind;
        (!line.is_empty()).then_some(line)
    })
}

fn is_continued(line: &[u8]) -> bool {
    let last = line.iter().rposition(|byte| *byte == b'\\');
    last.is_some_and(|at| continuation(&line[at..]) == line.len() - at)
}

/// Bytes of a backslash that begins `rest` and the end of line right behind it; zero when there is no such thing. The
/// server takes them out before it looks at words.
fn continuation(rest: &[u8]) -> usize {
    let Some(behind) = rest.strip_prefix(b"\\") else {
        return 0;
    };
    let returns = behind.iter().take_while(|byte| **byte == b'\r').count();
    if behind.get(returns) == Some(&b'\n') {
        returns + 2
    } else {
        0
    }
}

/// The other files that a line names.
#[must_use]
pub fn references(syntax: Syntax, line: &[u8]) -> Vec<Reference> {
    match syntax {
        Syntax::Settings => setting(line)
            .and_then(|setting| {
                Some(Reference {
                    directive: directive(setting.name.as_bytes())?,
                    path: path(&setting.value),
                    range: setting.range,
                })
            })
            .into_iter()
            .collect(),
        Syntax::Rules | Syntax::Hosts | Syntax::List => {
            let words = words(line);
            if syntax != Syntax::List
                && let [first, second] = words.as_slice()
                && let Some(directive) = directive(&first.text)
            {
                return vec![Reference {
                    directive,
                    path: path(&second.text),
                    range: second.range.clone(),
                }];
            }
            words
                .into_iter()
                .filter(|word| !word.quoted && word.text.len() > 1 && word.text[0] == b'@')
                .map(|word| Reference {
                    directive: Directive::List,
                    path: path(&word.text[1..]),
                    range: word.range,
                })
                .collect()
        }
    }
}

/// A file that a line of `pg_hosts.conf` names for its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFile {
    /// What is named, as it stands there: perhaps relative to the data directory.
    pub path: PathBuf,
    /// Where in the line the name stands, quotes and all.
    pub range: Range<usize>,
}

/// Returns certificate, key and, where there is one, certificate authority of a line of `pg_hosts.conf`: its second to
/// fourth field. Empty for comments, empty lines and includes.
#[must_use]
pub fn host_files(line: &[u8]) -> Vec<HostFile> {
    let mut fields = 0;
    let mut continues = false;
    let mut files = Vec::new();
    for word in words(line) {
        fields += usize::from(!continues);
        // A comma right behind a word continues its field (`next_field_expand` in src/backend/libpq/hba.c).
        continues = line.get(word.range.end) == Some(&b',');
        if (2..=4).contains(&fields) {
            files.push(HostFile {
                path: path(&word.text),
                range: word.range,
            });
        }
    }
    // An include has two fields, a host three or more.
    if fields < 3 { Vec::new() } else { files }
}

impl HostFile {
    /// Returns the line with another name in this place.
    #[must_use]
    pub fn renamed(&self, line: &[u8], to: &Path) -> Vec<u8> {
        replaced(line, &self.range, &quoted_word(to.as_os_str().as_bytes()))
    }
}

impl Reference {
    /// How the file that is named is spelled.
    #[must_use]
    pub fn syntax(&self, of: Syntax) -> Syntax {
        match self.directive {
            Directive::List => Syntax::List,
            _ => of,
        }
    }

    /// The line with another name in this place.
    #[must_use]
    pub fn renamed(&self, syntax: Syntax, line: &[u8], to: &Path) -> Vec<u8> {
        let name = to.as_os_str().as_bytes();
        let spelled = match (syntax, self.directive) {
            (Syntax::Settings, _) => quoted_value(name),
            (_, Directive::List) => [b"@".as_slice(), &quoted_word(name)].concat(),
            _ => quoted_word(name),
        };
        replaced(line, &self.range, &spelled)
    }
}

impl Setting {
    /// The line with another value.
    #[must_use]
    pub fn changed(&self, line: &[u8], value: &[u8]) -> Vec<u8> {
        replaced(line, &self.range, &quoted_value(value))
    }
}

fn replaced(line: &[u8], range: &Range<usize>, by: &[u8]) -> Vec<u8> {
    [&line[..range.start], by, &line[range.end..]].concat()
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn directive(word: &[u8]) -> Option<Directive> {
    match word {
        b"include" => Some(Directive::Include),
        b"include_if_exists" => Some(Directive::IncludeIfExists),
        b"include_dir" => Some(Directive::IncludeDir),
        _ => None,
    }
}

/// The setting on a line of `postgresql.conf`; `None` for comments, empty lines and what has no value.
#[must_use]
pub fn setting(line: &[u8]) -> Option<Setting> {
    let from = |at: usize, wanted: &dyn Fn(u8) -> bool| {
        line[at..]
            .iter()
            .position(|byte| !wanted(*byte))
            .map_or(line.len(), |length| at + length)
    };
    let blank = |byte: u8| byte.is_ascii_whitespace();
    let begin = from(0, &blank);
    let end = from(begin, &|byte| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.') || byte >= 0x80
    });
    if begin == end {
        return None;
    }
    let name = String::from_utf8_lossy(&line[begin..end]).to_ascii_lowercase();
    let mut at = from(end, &blank);
    if line.get(at) == Some(&b'=') {
        at = from(at + 1, &blank);
    }
    let (value, end) = if line.get(at) == Some(&b'\'') {
        unquoted_value(line, at)?
    } else {
        let end = from(at, &|byte| !blank(byte) && byte != b'#');
        (line[at..end].to_vec(), end)
    };
    (end > at).then_some(Setting {
        name,
        value,
        range: at..end,
    })
}

/// A value in quotes, and where it ends (`DeescapeQuotedString` in src/backend/utils/misc/guc-file.l).
fn unquoted_value(line: &[u8], quote: usize) -> Option<(Vec<u8>, usize)> {
    let mut value = Vec::new();
    let mut at = quote + 1;
    loop {
        match (*line.get(at)?, line.get(at + 1)) {
            (b'\'', Some(b'\'')) => {
                value.push(b'\'');
                at += 2;
            }
            (b'\'', _) => return Some((value, at + 1)),
            (b'\\', Some(escaped)) => {
                at += 2;
                value.push(match escaped {
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'0'..=b'7' => {
                        let mut code = u32::from(escaped - b'0');
                        let digits = line[at..]
                            .iter()
                            .take(2)
                            .take_while(|digit| (b'0'..=b'7').contains(digit));
                        for digit in digits {
                            code = code * 8 + u32::from(digit - b'0');
                            at += 1;
                        }
                        (code & 0xff) as u8
                    }
                    other => *other,
                });
            }
            (byte, _) => {
                value.push(byte);
                at += 1;
            }
        }
    }
}

/// A value as `postgresql.conf` wants it, in quotes.
#[must_use]
pub fn quoted_value(value: &[u8]) -> Vec<u8> {
    let mut out = vec![b'\''];
    for byte in value {
        match byte {
            b'\'' => out.extend_from_slice(b"''"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            byte => out.push(*byte),
        }
    }
    out.push(b'\'');
    out
}

fn quoted_word(word: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in word {
        out.push(*byte);
        if *byte == b'"' {
            out.push(b'"');
        }
    }
    out.push(b'"');
    out
}

struct Word {
    text: Vec<u8>,
    /// It begins with a quote, which takes the meaning from `@`.
    quoted: bool,
    range: Range<usize>,
}

/// The words of a line of rules, parted by blanks and commas (`next_token` in src/backend/libpq/hba.c).
fn words(line: &[u8]) -> Vec<Word> {
    let parts = |byte: u8| byte.is_ascii_whitespace() || byte == b',';
    let mut found = Vec::new();
    let mut at = 0;
    while at < line.len() && line[at] != b'#' {
        if parts(line[at]) {
            at += 1;
            continue;
        }
        let joint = continuation(&line[at..]);
        if joint > 0 {
            at += joint;
            continue;
        }
        let begin = at;
        let (mut text, mut in_quote, mut was_quote) = (Vec::new(), false, false);
        while at < line.len() && (in_quote || !(parts(line[at]) || line[at] == b'#')) {
            let byte = line[at];
            let joint = continuation(&line[at..]);
            if joint > 0 {
                at += joint;
                continue;
            }
            if byte == b'"' {
                // Two quotes in a row, inside of quotes, are one of the word.
                if !in_quote && was_quote {
                    text.push(byte);
                }
                was_quote = in_quote && !was_quote;
                in_quote = !in_quote;
            } else {
                text.push(byte);
                was_quote = false;
            }
            at += 1;
        }
        found.push(Word {
            text,
            quoted: line[begin] == b'"',
            range: begin..at,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_setting(line: &[u8], expected: Option<(&str, &[u8])>) {
        let found = setting(line);
        let found = found
            .as_ref()
            .map(|setting| (setting.name.as_str(), setting.value.as_slice()));
        assert_eq!(found, expected, "{}", line.escape_ascii());
    }

    #[test]
    fn settings() {
        check_setting(b"port = 5432 # the usual\n", Some(("port", b"5432")));
        check_setting(b"  Port 5433\r\n", Some(("port", b"5433")));
        check_setting(b"a.b='c'#d", Some(("a.b", b"c")));
        check_setting(
            b"x = 'it''s \\'so\\' \\101\\n'",
            Some(("x", b"it's 'so' A\n")),
        );
        check_setting(b"x = ''", Some(("x", b"")));
        check_setting(b"x = 'caf\xe9'", Some(("x", b"caf\xe9")));
        check_setting(b"# port = 1", None);
        check_setting(b"port", None);
        check_setting(b"x = 'no end", None);
        check_setting(b"", None);
    }

    #[track_caller]
    fn check_renamed(syntax: Syntax, line: &str, path: &str, to: &str, expected: &str) {
        let found = references(syntax, line.as_bytes());
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        assert_eq!(found[0].path, Path::new(path), "{line}");
        let renamed = found[0].renamed(syntax, line.as_bytes(), Path::new(to));
        assert_eq!(
            renamed.escape_ascii().to_string(),
            expected.as_bytes().escape_ascii().to_string()
        );
        assert_eq!(
            references(syntax, &renamed)[0].path,
            Path::new(to),
            "{line}"
        );
    }

    #[test]
    fn names_of_other_files() {
        use Syntax::{List, Rules, Settings};
        check_renamed(
            Settings,
            "include '/a b' # why\n",
            "/a b",
            "c",
            "include 'c' # why\n",
        );
        check_renamed(
            Settings,
            "INCLUDE_DIR=conf.d",
            "conf.d",
            "it's",
            "INCLUDE_DIR='it''s'",
        );
        check_renamed(Settings, "include x", "x", "b\\\n", "include 'b\\\\\\n'");
        check_renamed(Rules, "include \"a b\"\n", "a b", "c", "include \"c\"\n");
        check_renamed(
            Rules,
            "local all @\"my \"\"list\"\"\",bob md5",
            "my \"list\"",
            "q\"q",
            "local all @\"q\"\"q\",bob md5",
        );
        check_renamed(
            List,
            "alice @more # @no",
            "more",
            "d/more",
            "alice @\"d/more\" # @no",
        );
    }

    #[test]
    fn what_names_no_file() {
        for (syntax, line) in [
            (Syntax::Settings, "#include 'x'"),
            (Syntax::Settings, "work_mem = '@x'"),
            (Syntax::Rules, "local all \"@x\" md5"),
            (Syntax::Rules, "local all @ md5"),
            (Syntax::Rules, "# local all @x md5"),
            (Syntax::List, "include x"),
        ] {
            assert_eq!(references(syntax, line.as_bytes()), [], "{line}");
        }
        assert_eq!(references(Syntax::Rules, b"local @a,@b @c md5").len(), 3);
    }

    #[test]
    fn lines_go_on_behind_a_backslash() {
        let text = b"a \\\nb\nc\\\r\nd \\x\n\\";
        let joined: Vec<&[u8]> = lines(Syntax::Rules, text).collect();
        assert_eq!(joined, [&b"a \\\nb\n"[..], b"c\\\r\nd \\x\n", b"\\"]);
        assert_eq!(lines(Syntax::Settings, text).count(), 5);
        assert_eq!(lines(Syntax::Rules, b"").count(), 0);
        let line = b"include \\\n more # why\n";
        let [reference] = references(Syntax::Rules, line).try_into().expect("one");
        assert_eq!(
            reference.renamed(Syntax::Rules, line, Path::new("m")),
            b"include \\\n \"m\" # why\n"
        );
    }

    #[test]
    fn files_of_hosts() {
        let files = |line: &str| -> Vec<String> {
            host_files(line.as_bytes())
                .into_iter()
                .map(|file| file.path.display().to_string())
                .collect()
        };
        assert_eq!(files("a.example c.pem k.pem"), ["c.pem", "k.pem"]);
        assert_eq!(
            files("a.example,b.example \"/my certificates/c\" k ca.pem \"cat /pass\" on # why\n"),
            ["/my certificates/c", "k", "ca.pem"]
        );
        assert_eq!(files("# HOSTNAME CERTIFICATE KEY"), [""; 0]);
        assert_eq!(files("include more_hosts.conf"), [""; 0]);
        assert_eq!(files("\n"), [""; 0]);
        assert_eq!(
            files("a.example \\\n  c.p\\\r\nem k.pem\\\n"),
            ["c.pem", "k.pem"],
            "one line in three"
        );
        let line = b"@names c k # why\n";
        let [certificate, _] = host_files(line).try_into().expect("two files");
        assert_eq!(
            certificate.renamed(line, Path::new("d e")),
            b"@names \"d e\" k # why\n"
        );
        assert_eq!(references(Syntax::Hosts, line)[0].path, Path::new("names"));
        assert_eq!(
            references(Syntax::Hosts, b"include x")[0].directive,
            Directive::Include
        );
    }
}
