use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// Valid texts and how many bytes Postgres 15 renders them in (`select octet_length($1::jsonb::text)`).
const VALID: &[(&str, usize, JsonKind)] = &[
    ("null", 4, JsonKind::Null),
    ("true", 4, JsonKind::Bool),
    (" \t\r\nfalse\n\r\t ", 5, JsonKind::Bool),
    // Containers are rendered with ", " and ": ".
    ("{}", 2, JsonKind::Object),
    ("{ }", 2, JsonKind::Object),
    ("[]", 2, JsonKind::Array),
    ("[\n]", 2, JsonKind::Array),
    ("[1,1,1]", 9, JsonKind::Array),
    ("[ 1 , [ ] , { } ]", 11, JsonKind::Array),
    (r#"{"a":1,"b":[true]}"#, 21, JsonKind::Object),
    (r#" { "a" : { "b" : null } } "#, 18, JsonKind::Object),
    // Numbers are written out, with the scale they came with.
    ("0", 1, JsonKind::Number),
    ("-0", 1, JsonKind::Number),
    ("-0.0", 3, JsonKind::Number),
    ("-0.01", 5, JsonKind::Number),
    ("12.50", 5, JsonKind::Number),
    ("1e3", 4, JsonKind::Number),
    ("1e+3", 4, JsonKind::Number),
    ("1.50e1", 4, JsonKind::Number),
    ("1E-5", 7, JsonKind::Number),
    ("-12e-1", 4, JsonKind::Number),
    ("12e-5", 7, JsonKind::Number),
    ("-1.50e-3", 8, JsonKind::Number),
    ("0e5", 1, JsonKind::Number),
    ("0e-5", 7, JsonKind::Number),
    ("-0E-1", 3, JsonKind::Number),
    ("0.000001e6", 1, JsonKind::Number),
    ("0.012e1", 4, JsonKind::Number),
    ("0.012e5", 4, JsonKind::Number),
    ("1e0000000000000000000000001", 2, JsonKind::Number),
    ("1e308", 309, JsonKind::Number),
    ("1e999", 1000, JsonKind::Number),
    ("-1e-999", 1002, JsonKind::Number),
    ("0e1000", 1, JsonKind::Number),
    // Strings lose the escapes they do not need.
    (r#""""#, 2, JsonKind::String),
    (r#""plain text of more than eight bytes""#, 37, JsonKind::String),
    (r#""\"\\\b\f\n\r\t""#, 16, JsonKind::String),
    (r#""\/""#, 3, JsonKind::String),
    (r#""\u0022\u005C\u0008\u000c\u000A\u000d\u0009""#, 16, JsonKind::String),
    (r#""\u0001\u001F""#, 14, JsonKind::String),
    (r#""\u0041""#, 3, JsonKind::String),
    (r#""\u00e9\u20AC""#, 7, JsonKind::String),
    (r#""\ud83d\ude00\uDBFF\uDFFF""#, 10, JsonKind::String),
    (r#""\uFFFF\ufffe""#, 8, JsonKind::String),
    (r#""\u007f""#, 3, JsonKind::String),
    ("\"\u{7f}é€😀\u{2028}\"", 15, JsonKind::String),
];

#[test]
fn valid_texts_are_accepted_with_their_rendered_length_and_kind() {
    for &(text, rendered_bytes, kind) in VALID {
        assert_eq!(scan(text), Ok(Scanned { rendered_bytes, kind }), "{text}");
    }
}

#[test]
fn repeated_keys_are_all_counted() {
    let scanned = scan(r#"{"a":1,"a":2}"#).expect("repeated keys are fine");
    assert_eq!(scanned.rendered_bytes, r#"{"a": 1, "a": 2}"#.len());
}

#[test]
fn invalid_texts_are_refused_with_problem_and_offset() {
    use Expected::*;
    use Problem::*;
    let cases: &[(&str, usize, Problem)] = &[
        ("", 0, Empty),
        (" \n ", 3, Empty),
        ("x", 0, Unexpected(Value)),
        ("\u{feff}{}", 0, Unexpected(Value)),
        ("\u{a0}1", 0, Unexpected(Value)),
        ("\u{c}1", 0, Unexpected(Value)),
        ("nul", 0, Unexpected(Value)),
        ("NaN", 0, Unexpected(Value)),
        ("Infinity", 0, Unexpected(Value)),
        ("+1", 0, Unexpected(Value)),
        (".5", 0, Unexpected(Value)),
        ("'a'", 0, Unexpected(Value)),
        ("]", 0, Unexpected(Value)),
        ("truex", 4, TrailingText),
        ("{} {}", 3, TrailingText),
        ("1 // one", 2, TrailingText),
        ("0x1", 1, TrailingText),
        ("1_0", 1, TrailingText),
        ("[", 1, UnexpectedEnd(ValueOrBracket)),
        ("[,", 1, Unexpected(ValueOrBracket)),
        ("[1", 2, UnexpectedEnd(CommaOrBracket)),
        ("[1 2]", 3, Unexpected(CommaOrBracket)),
        ("[1}", 2, Unexpected(CommaOrBracket)),
        ("[1;2]", 2, Unexpected(CommaOrBracket)),
        ("[1,]", 3, Unexpected(Value)),
        ("{", 1, UnexpectedEnd(KeyOrBrace)),
        ("{1:1}", 1, Unexpected(KeyOrBrace)),
        (r#"{"a""#, 4, UnexpectedEnd(Colon)),
        (r#"{"a" 1}"#, 5, Unexpected(Colon)),
        (r#"{"a":}"#, 5, Unexpected(Value)),
        (r#"{"a":1"#, 6, UnexpectedEnd(CommaOrBrace)),
        (r#"{"a":1]"#, 6, Unexpected(CommaOrBrace)),
        (r#"{"a":1;"b":2}"#, 6, Unexpected(CommaOrBrace)),
        (r#"{"a":1,}"#, 7, Unexpected(Key)),
        (r#"["abc"#, 1, UnterminatedString),
        (r#""abc\""#, 0, UnterminatedString),
        ("\"tab\there\"", 4, ControlCharacter),
        ("\"0123456789abcdef\n\"", 17, ControlCharacter),
        ("\"\0\"", 1, ControlCharacter),
        (r#""\x41""#, 1, BadEscape),
        (r#""ab\u12g4""#, 3, BadEscape),
        (r#""\u+123""#, 1, BadEscape),
        (r#""\u12"#, 1, BadEscape),
        (r#""\"#, 1, BadEscape),
        (r#""\U0041""#, 1, BadEscape),
        (r#""a\u0000""#, 2, NulEscape),
        (r#""\ud800""#, 1, LoneSurrogate),
        (r#""\ud800\n""#, 1, LoneSurrogate),
        (r#""\ud800\u0041""#, 1, LoneSurrogate),
        (r#""\ud800\ud800""#, 1, LoneSurrogate),
        (r#""\udc00\ud800""#, 1, LoneSurrogate),
        ("[-]", 1, BadNumber),
        ("-a", 0, BadNumber),
        ("01", 0, BadNumber),
        ("-00", 0, BadNumber),
        ("1.", 0, BadNumber),
        ("1.e5", 0, BadNumber),
        ("1e", 0, BadNumber),
        ("1e+", 0, BadNumber),
        ("[1, 1e1000]", 4, NumberTooLong),
        ("1e-1000", 0, NumberTooLong),
        ("0e1001", 0, NumberTooLong),
        ("1e131071", 0, NumberTooLong),
        ("1e-99999999999999999999999999", 0, NumberTooLong),
    ];
    for &(text, offset, problem) in cases {
        let error = scan(text).expect_err(text);
        assert_eq!((error.offset, error.problem), (offset, problem), "{text}");
    }
}

#[test]
fn containers_may_nest_64_deep() {
    let arrays = |depth| "[".repeat(depth) + &"]".repeat(depth);
    assert_eq!(scan(&arrays(64)).map(|scanned| scanned.rendered_bytes), Ok(128));
    let error = scan(&arrays(65)).expect_err("65 levels");
    assert_eq!((error.offset, error.problem), (64, Problem::TooDeep));

    let objects = |depth| r#"{"a":"#.repeat(depth) + "{}" + &"}".repeat(depth);
    assert!(scan(&objects(63)).is_ok());
    assert_eq!(scan(&objects(64)).map_err(|error| error.problem), Err(Problem::TooDeep));

    let siblings = format!("[{}]", [arrays(63).as_str()].repeat(100).join(","));
    assert!(scan(&siblings).is_ok());
}

#[test]
fn arrays_and_objects_are_told_apart_at_every_depth() {
    for depth in 1..=32 {
        let mixed = r#"[{"a":"#.repeat(depth) + "1" + &"}]".repeat(depth);
        assert!(scan(&mixed).is_ok());
        let crossed = r#"[{"a":"#.repeat(depth) + "1" + &"}]".repeat(depth - 1) + "]}";
        assert!(scan(&crossed).is_err());
    }
}

#[test]
fn numbers_may_have_1000_digits_written_out() {
    assert!(scan(&"9".repeat(1000)).is_ok());
    assert_eq!(scan(&"9".repeat(1001)).map_err(|error| error.problem), Err(Problem::NumberTooLong));
    assert!(scan(&format!("0.{}", "0".repeat(999))).is_ok());
    assert!(scan(&format!("0.{}", "0".repeat(1000))).is_err());
    assert!(scan(&format!("0.{}1e1000", "0".repeat(999))).is_ok());
}

#[test]
fn errors_tell_line_and_column_in_characters() {
    let cases = [
        ("", "expected a value, but the text is empty at line 1 column 1"),
        (r#"{"subject":"é" 1}"#, "expected ',' or '}' at line 1 column 16"),
        ("{\n  \"a\": [1,\r\n  😀]}", "expected a value at line 3 column 3"),
        ("[1", "unexpected end of text, expected ',' or ']' at line 1 column 3"),
        ("{1}", "expected a key in quotes or '}' at line 1 column 2"),
        ("[\"\\u0000\"]", "\\u0000 cannot be stored at line 1 column 3"),
        ("1e9999", "number of more than 1000 digits at line 1 column 1"),
    ];
    for (text, message) in cases {
        assert_eq!(scan(text).expect_err(text).to_string(), message);
    }
}

#[test]
fn a_top_level_string_is_found_without_its_escapes() {
    let string = |value: &'static str| Some(Member::String(value.into()));
    let cases = [
        (r#"{"g":"a"}"#, string("a")),
        (r#" { "x" : [{"g":1}] , "g" : "b" } "#, string("b")),
        (r#"{"\u0067":"\u00e9\/\n\ud83d\ude00!"}"#, string("é/\n😀!")),
        (r#"{"g":"first","g":"last"}"#, string("last")),
        (r#"{"g":1,"\u0067":""}"#, string("")),
        (r#"{"g":"first","g":null}"#, Some(Member::Other)),
        (r#"{"g":{"g":"inner"}}"#, Some(Member::Other)),
        (r#"{"G":"a","gg":"b","x":{"g":"c"}}"#, None),
        ("{}", None),
        (r#"["g","a"]"#, None),
        (r#""g""#, None),
    ];
    for (text, member) in cases {
        assert_eq!(top_level_string(text, "g"), member, "{text}");
    }
}

#[test]
fn a_member_is_added_last() {
    assert_eq!(with_member("{}", "a", "b"), r#"{"a": "b"}"#);
    assert_eq!(with_member(" { \n } \n", "a", "b"), r#" {"a": "b"}"#);
    assert_eq!(with_member(r#"{"x":{} }"#, "a\"", "\n"), r#"{"x":{}, "a\"": "\n"}"#);
    assert_eq!(with_member(r#"{"x":"{"}"#, "x", ""), r#"{"x":"{", "x": ""}"#);
}

#[test]
fn quoting_escapes_only_what_must_be() {
    assert_eq!(
        quote("a\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é😀"),
        r#""a\"\\/\b\f\n\r\t\u0001\u001f"#.to_owned() + "\u{7f}é😀\""
    );
}

proptest! {
    #[test]
    fn scanning_agrees_with_serde_json(text in near_json()) {
        let parsed = serde_json::from_str::<serde::de::IgnoredAny>(&text);
        match scan(&text) {
            Ok(_) => prop_assert!(parsed.is_ok(), "{parsed:?}"),
            Err(error) => {
                prop_assert!(text.is_char_boundary(error.offset));
                // serde_json's IgnoredAny looks at the grammar only.
                let ours_alone =
                    matches!(error.problem, Problem::NulEscape | Problem::LoneSurrogate | Problem::NumberTooLong);
                prop_assert!(ours_alone || parsed.is_err(), "{error}");
            }
        }
    }

    #[test]
    fn a_quoted_string_is_read_back(value in "[^\0]*", key in "[^\0]{0,9}") {
        let quoted = quote(&value);
        prop_assert_eq!(serde_json::from_str::<String>(&quoted).ok(), Some(value.clone()));
        let rendered_bytes = scan(&quoted).map(|scanned| scanned.rendered_bytes);
        prop_assert_eq!(rendered_bytes, Ok(quoted.len()));
        for object in ["{}", r#"{"a":1}"#, r#"{"a":{} } "#] {
            let extended = with_member(object, &key, &value);
            prop_assert!(scan(&extended).is_ok());
            let member = top_level_string(&extended, &key);
            prop_assert_eq!(member, Some(Member::String(value.as_str().into())));
        }
    }
}

/// Valid texts of the table side by side in a container, with up to two characters deleted or put in.
fn near_json() -> impl Strategy<Value = String> {
    let values = prop::collection::vec(select(VALID), 0..6);
    let edits = prop::collection::vec((any::<Index>(), any::<bool>(), select(EDITS)), 0..3);
    (values, any::<bool>(), edits).prop_map(|(values, object, edits)| {
        let values = values.iter().map(|(text, ..)| *text);
        let text = if object {
            let members: Vec<String> = values.map(|value| format!("\"k\":{value}")).collect();
            format!("{{{}}}", members.join(","))
        } else {
            format!("[{}]", values.collect::<Vec<_>>().join(","))
        };
        let mut characters: Vec<char> = text.chars().collect();
        for (place, delete, insert) in edits {
            if delete && !characters.is_empty() {
                characters.remove(place.index(characters.len()));
            } else {
                characters.insert(place.index(characters.len() + 1), insert);
            }
        }
        characters.into_iter().collect()
    })
}

const EDITS: &[char] = &[
    '{', '}', '[', ']', ',', ';', ':', '"', '\\', '/', ' ', '\n', '\0', '\u{1f}', '\u{7f}', '0', '1', '9',
    '-', '+', '.', 'e', 'E', 'u', 'd', 'D', 'c', '8', 'b', 'n', 't', 'é', '😀', '\u{feff}',
];
