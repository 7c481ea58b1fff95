//! What `domain::json` says of a text holds in a real Postgres.
//!
//! Each check takes `render`: `select $1::text::jsonb::text`, or the error as text. The cases are made by proptest;
//! a failing one is made smaller before it is shown.

use std::collections::HashSet;
use std::fmt::Debug;

use pgmq_grpc::domain::json::{self, Problem};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::harness::TestDatabase;

/// How many cases each check tries.
const CASES: u32 = 300;

/// A plain SQL user's connection that renders JSON text; the database goes with the first value.
async fn renderer() -> (TestDatabase, tokio_postgres::Client) {
    let database = TestDatabase::create_empty().await;
    let connection = database.connect().await;
    (database, connection)
}

/// JSON text as Postgres renders it, or why it does not.
async fn render(connection: &tokio_postgres::Client, text: String) -> Result<String, String> {
    let rendered = connection.query_one("SELECT $1::text::jsonb::text", &[&text]).await;
    rendered.map(|row| row.get(0)).map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn documents_are_rendered_in_the_bytes_foretold() {
    let (_database, connection) = renderer().await;
    check_documents(CASES, async |text| render(&connection, text).await).await;
}

#[tokio::test]
async fn numbers_are_rendered_in_the_bytes_foretold() {
    let (_database, connection) = renderer().await;
    check_numbers(CASES, async |text| render(&connection, text).await).await;
}

#[tokio::test]
async fn repeated_keys_take_at_most_the_bytes_foretold() {
    let (_database, connection) = renderer().await;
    check_repeated_keys(CASES, async |text| render(&connection, text).await).await;
}

#[tokio::test]
async fn damaged_documents_are_judged_alike() {
    let (_database, connection) = renderer().await;
    check_damaged_documents(CASES, async |text| render(&connection, text).await).await;
}

#[tokio::test]
async fn quoted_strings_are_rendered_unchanged() {
    let (_database, connection) = renderer().await;
    check_quoted_strings(CASES, async |text| render(&connection, text).await).await;
}

/// Documents without repeated keys are rendered by Postgres in exactly the bytes foretold.
async fn check_documents(cases: u32, render: impl AsyncFn(String) -> Result<String, String>) {
    check(cases, documents(Keys::Unique), async |text: String| {
        let scanned = json::scan(&text).map_err(|error| error.to_string())?;
        let rendered = render(text).await?;
        same("rendered bytes", scanned.rendered_bytes, rendered.len())?;
        same("scan of the rendering", Ok(scanned), json::scan(&rendered))
    })
    .await;
}

/// Numbers in all shapes: what we accept is rendered in exactly the bytes foretold.
async fn check_numbers(cases: u32, render: impl AsyncFn(String) -> Result<String, String>) {
    check(cases, numbers(), async |text: String| {
        let Ok(scanned) = json::scan(&text) else { return Ok(()) };
        same("rendered bytes", scanned.rendered_bytes, render(text).await?.len())
    })
    .await;
}

/// Documents with repeated keys take at most the bytes foretold, and the last of the repeated members is the one kept.
async fn check_repeated_keys(cases: u32, render: impl AsyncFn(String) -> Result<String, String>) {
    check(cases, documents(Keys::Repeated), async |text: String| {
        let scanned = json::scan(&text).map_err(|error| error.to_string())?;
        let rendered = render(text.clone()).await?;
        at_least(scanned.rendered_bytes, rendered.len())?;
        for key in REPEATED_KEYS {
            same(key, json::top_level_string(&text, key), json::top_level_string(&rendered, key))?;
        }
        Ok(())
    })
    .await;
}

/// Of damaged documents Postgres accepts all that we accept, and refuses all that we refuse for their grammar.
async fn check_damaged_documents(cases: u32, render: impl AsyncFn(String) -> Result<String, String>) {
    check(cases, damaged_documents(), async |text: String| {
        let scanned = json::scan(&text);
        match (scanned, render(text).await) {
            (Ok(scanned), rendered) => at_least(scanned.rendered_bytes, rendered?.len()),
            (Err(error), Ok(_)) if !matches!(error.problem, Problem::TooDeep | Problem::NumberTooLong) => {
                Err(format!("Postgres accepts what we refuse: {error}"))
            }
            (Err(_), _) => Ok(()),
        }
    })
    .await;
}

/// Quoted strings are rendered as they are, and an added member is found again.
async fn check_quoted_strings(cases: u32, render: impl AsyncFn(String) -> Result<String, String>) {
    check(cases, (objects(), "[^\0]*", "[^\0]*"), async |(object, key, value): (String, String, String)| {
        let quoted = json::quote(&value);
        same("rendering", render(quoted.clone()).await?, quoted)?;
        let rendered = render(json::with_member(&object, &key, &value)).await?;
        let member = json::top_level_string(&rendered, &key);
        same("member", member, Some(json::Member::String(value.as_str().into())))
    })
    .await;
}

/// Whether the keys of one object may repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// All keys of an object differ once unescaped.
    Unique,
    /// Keys come from [`REPEATED_KEYS`], escaped in several ways.
    Repeated,
}

/// The keys of documents with repeated keys.
const REPEATED_KEYS: [&str; 3] = ["a", "é", "b\"/"];

/// Texts the scanner must accept: any value, with whitespace and escapes wherever they may be.
fn documents(keys: Keys) -> impl Strategy<Value = String> {
    let number = numbers().prop_filter("at most 1,000 digits", |text| json::scan(text).is_ok());
    let word = select(["null", "true", "false"].as_slice()).prop_map(str::to_owned);
    let leaf = prop_oneof![2 => number, 3 => strings().prop_map(|string| string.written), 1 => word];
    let value = leaf.prop_recursive(6, 60, 8, move |value| {
        let array = vec(spaced(value.clone()), 0..8).prop_map(|elements| format!("[{}]", elements.join(",")));
        prop_oneof![array, object(keys, value)]
    });
    spaced(value)
}

/// Objects the scanner must accept, with some repeated keys.
fn objects() -> impl Strategy<Value = String> {
    let value = documents(Keys::Repeated).boxed();
    spaced(prop_oneof![object(Keys::Repeated, value.clone()), object(Keys::Unique, value)])
}

/// Numbers in all shapes of the grammar, some too long for the scanner.
fn numbers() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,9})?",
        4 => "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,9})?[eE][+-]?[0-9]{1,2}",
        2 => "-?0\\.0{0,12}[0-9]{0,2}0{1,2}([eE][+-]?[01]?[0-9])?",
        1 => "-?(0|[1-9][0-9]{0,600})(\\.[0-9]{1,600})?([eE][+-]?0{0,9}[0-9]{1,4})?",
    ]
}

/// A string and one way of writing it.
#[derive(Debug, Clone)]
struct WrittenString {
    /// The string itself.
    value: String,
    /// As JSON text, quotes included.
    written: String,
}

/// Strings of all characters but U+0000, each written in one of the ways there are.
fn strings() -> impl Strategy<Value = WrittenString> {
    let character = prop_oneof![
        6 => prop::char::range(' ', '~'),
        1 => prop::char::range('\u{1}', '\u{20}'),
        1 => select(['"', '\\', '/', '\u{7f}', '\u{80}', '\u{7ff}', '\u{800}', '\u{ffff}', '\u{10000}'].as_slice()),
        1 => any::<char>().prop_filter("no U+0000", |&character| character != '\0'),
    ];
    vec((character, any::<Index>()), 0..40).prop_map(|characters| WrittenString {
        value: characters.iter().map(|(character, _)| character).collect(),
        written: quoted(characters.iter().map(|(character, way)| written(*character, *way))),
    })
}

/// Documents with one to four characters deleted, replaced or put in.
fn damaged_documents() -> impl Strategy<Value = String> {
    let documents =
        prop_oneof![3 => documents(Keys::Unique), 1 => strings().prop_map(|string| string.written)];
    (documents, vec((any::<Index>(), 0..3, select(DAMAGE)), 1..5)).prop_map(|(text, edits)| {
        let mut characters: Vec<char> = text.chars().collect();
        for (place, edit, character) in edits {
            let end = characters.len();
            match edit {
                0 if end > 0 => drop(characters.remove(place.index(end))),
                1 if end > 0 => characters[place.index(end)] = character,
                _ => characters.insert(place.index(end + 1), character),
            }
        }
        characters.into_iter().collect()
    })
}

const DAMAGE: &[char] = &[
    '{', '}', '[', ']', ',', ';', ':', '"', '\\', '/', ' ', '\n', '\0', '\u{1f}', '\u{7f}', '\u{a0}',
    '\u{feff}', '0', '1', '9', '-', '+', '.', 'e', 'E', 'u', 'd', 'D', 'c', '8', 'b', 'n', 't', 'é', '😀',
];

fn object(keys: Keys, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let key = match keys {
        Keys::Unique => strings().boxed(),
        Keys::Repeated => repeated_key().boxed(),
    };
    vec((space(), key, space(), spaced(value)), 0..8).prop_map(move |mut members| {
        if keys == Keys::Unique {
            let mut seen = HashSet::new();
            members.retain(|(_, key, ..)| seen.insert(key.value.clone()));
        }
        let members = members.into_iter().map(|(before, key, after, value)| {
            let key = key.written;
            format!("{before}{key}{after}:{value}")
        });
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    })
}

fn repeated_key() -> impl Strategy<Value = WrittenString> {
    (select(REPEATED_KEYS.as_slice()), any::<[Index; 3]>()).prop_map(|(key, ways)| WrittenString {
        value: key.to_owned(),
        written: quoted(key.chars().zip(ways).map(|(character, way)| written(character, way))),
    })
}

fn spaced(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (space(), value, space()).prop_map(|(before, value, after)| before + &value + &after)
}

fn space() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just(String::new()), 1 => "[ \t\r\n]{1,9}"]
}

fn quoted(characters: impl Iterator<Item = String>) -> String {
    format!("\"{}\"", characters.collect::<String>())
}

/// Writes a character of a string in one of the ways there are.
fn written(character: char, way: Index) -> String {
    let mut units = [0; 2];
    let units = character.encode_utf16(&mut units);
    let mut ways: Vec<String> = vec![
        units.iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        units.iter().map(|unit| format!("\\u{unit:04X}")).collect(),
    ];
    match character {
        '"' | '\\' => ways.push(format!("\\{character}")),
        '\u{8}' => ways.push("\\b".to_owned()),
        '\u{c}' => ways.push("\\f".to_owned()),
        '\n' => ways.push("\\n".to_owned()),
        '\r' => ways.push("\\r".to_owned()),
        '\t' => ways.push("\\t".to_owned()),
        '\0'..' ' => {}
        '/' => ways.extend(["/".to_owned(), "\\/".to_owned()]),
        _ => ways.extend(vec![character.to_string(); 6]),
    }
    way.get(&ways).clone()
}

/// Runs a property on random cases; panics with the smallest case that it finds to fail.
async fn check<T: Debug>(
    cases: u32,
    strategy: impl Strategy<Value = T>,
    property: impl AsyncFn(T) -> Result<(), String>,
) {
    let mut runner = TestRunner::default();
    for _ in 0..cases {
        let mut tree = strategy.new_tree(&mut runner).expect("a case");
        let Err(mut failure) = property(tree.current()).await else { continue };
        let mut smallest = tree.current();
        let mut more = tree.simplify();
        while more {
            let case = tree.current();
            more = match property(tree.current()).await {
                Err(reason) => {
                    (failure, smallest) = (reason, case);
                    tree.simplify()
                }
                Ok(()) => tree.complicate(),
            };
        }
        panic!("{failure}\nsmallest case: {smallest:?}");
    }
}

fn same<T: PartialEq + Debug>(what: &str, left: T, right: T) -> Result<(), String> {
    if left == right { Ok(()) } else { Err(format!("{what}: {left:?} is not {right:?}")) }
}

fn at_least(foretold: usize, actual: usize) -> Result<(), String> {
    if actual <= foretold {
        Ok(())
    } else {
        Err(format!("{actual} bytes rendered, at most {foretold} foretold"))
    }
}
