//! Bodies of messages: JSON that does not compress, so that no side gains by that.

/// A JSON object of exactly this many bytes (at least 11), the same in every call.
pub fn body(bytes: usize) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(bytes);
    text.push_str(r#"{"pad":""#);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..bytes.saturating_sub(10).max(1) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(char::from(LETTERS[(state >> 40) as usize % LETTERS.len()]));
    }
    text.push_str(r#""}"#);
    text
}

#[cfg(test)]
mod tests {
    use super::body;

    #[test]
    fn a_body_is_json_of_the_wanted_length() {
        for bytes in [22, 1024, 65_536] {
            let text = body(bytes);

            assert_eq!(text.len(), bytes);
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
