use super::*;

#[test]
fn the_table_has_a_line_for_each_revision() {
    let model = CachedModel {
        name: "org/name".to_owned(),
        commit: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
        revisions: vec!["main".to_owned(), "v1".to_owned()],
        bytes: 16_060_000_000,
        partial_bytes: 0,
        last_used: 1_790_000_000,
        state: CachedState::Complete,
        path: PathBuf::from("/c"),
    };
    let begun = CachedModel {
        name: "a/b".to_owned(),
        commit: None,
        revisions: Vec::new(),
        bytes: 0,
        partial_bytes: 1_500_000,
        last_used: 0,
        state: CachedState::Incomplete,
        path: PathBuf::from("/c"),
    };
    assert_eq!(
        table(&[model, begun], Path::new("/c")),
        "MODEL     REVISION  COMMIT        SIZE     LAST USED         STATE\n\
         org/name  main, v1  0123456789ab  16.1 GB  2026-09-21 14:13  complete\n\
         a/b                 -             0 B      1970-01-01 00:00  incomplete, 1.5 MB of a download\n"
    );
    assert_eq!(table(&[], Path::new("/c")), "There are no models in /c.\n");
}

#[test]
fn a_cache_without_a_folder_has_no_models() {
    assert_eq!(list(Path::new("/nowhere/hub")), []);
    let name = HubName::parse("org/name").unwrap();
    assert_eq!(remove(&name, Path::new("/nowhere/hub")).unwrap_err().kind(), "not_cached");
}
