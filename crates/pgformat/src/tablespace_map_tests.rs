use proptest::prelude::*;

use super::*;

fn entry(tablespace: u32, location: &str) -> TablespaceMapEntry {
    TablespaceMapEntry {
        tablespace: Oid(tablespace),
        location: PathBuf::from(location),
    }
}

#[test]
fn reads_what_the_server_writes() {
    let map = TablespaceMap::parse(
        "16391 /plain\n16392  /two  spaces\n16393 /back\\\\slash\n16394 /new\\\nline\n",
    );
    let entries = vec![
        entry(16391, "/plain"),
        entry(16392, " /two  spaces"),
        entry(16393, "/back\\slash"),
        entry(16394, "/new\nline"),
    ];
    assert_eq!(map, Ok(TablespaceMap { entries }));
    assert_eq!(TablespaceMap::parse(""), Ok(TablespaceMap::default()));
    let windows = TablespaceMap::parse("1 /a\r\n2 /b\r\n").expect("map");
    assert_eq!(windows.entries, [entry(1, "/a"), entry(2, "/b")]);
}

#[test]
fn refuses_with_line_and_reason() {
    for (text, line, reason) in [
        (
            "1 /a\n2 /b",
            2,
            "it does not end, the file may be cut short",
        ),
        ("1 /a\\", 1, "it does not end, the file may be cut short"),
        ("1 /a\n/b\n", 2, "it has no space between OID and path"),
        ("x /a\n", 1, "\"x\" is not an OID"),
        (" /a\n", 1, "\"\" is not an OID"),
        ("1 \n", 1, "the path is empty"),
    ] {
        assert_eq!(
            TablespaceMap::parse(text),
            Err(FormatError::TablespaceMap {
                line,
                reason: reason.to_owned()
            }),
            "{text:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_path_round_trips(paths in prop::collection::vec((any::<u32>(), prop::collection::vec(1..=u8::MAX, 1..20)), 0..5)) {
        let entries = paths.into_iter()
            .map(|(oid, path)| TablespaceMapEntry {
                tablespace: Oid(oid),
                location: PathBuf::from(OsString::from_vec(path)),
            })
            .collect();
        let map = TablespaceMap { entries };
        prop_assert_eq!(TablespaceMap::parse(map.to_bytes()), Ok(map));
    }

    #[test]
    fn what_is_read_is_written_the_same(text in "[0-9]{1,3} [a\\\\ \n\r]{1,10}\n") {
        if let Ok(map) = TablespaceMap::parse(&text) {
            prop_assert_eq!(TablespaceMap::parse(map.to_bytes()), Ok(map));
        }
    }
}
