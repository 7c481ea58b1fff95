//! Pages of lists: how large, and where the next one begins.
//!
//! A token holds the last key of its page, so that a page begins where the one before ended whatever was added
//! or removed in between. It is bound to its list and filter by a hash, and checked by a CRC.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Invalid, Kind};

const VERSION: u8 = 1;
const DEFAULT_SIZE: i32 = 100;
const MAX_SIZE: i32 = 1_000;

/// The most bytes of a page.
pub const MAX_BYTES: usize = 1_000_000;

/// What an item takes beside its texts.
const ITEM_BYTES: usize = 96;

/// Which page of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    size: i64,
    after: Option<Vec<String>>,
    filter: u32,
}

/// One page of a list and the token of the next.
#[derive(Debug, Clone)]
pub struct Paged<T> {
    /// The page's items in the list's order.
    pub items: Vec<T>,
    /// The next page's token; empty at the end.
    pub next_page_token: String,
}

impl Page {
    /// Reads a page's size and token for the list `list` under `filters`.
    ///
    /// # Errors
    /// The refused field (`page_size`, `page_token`) and why. A size above 1,000 is taken as 1,000.
    pub fn parse(
        list: &str,
        filters: &[&str],
        size: i32,
        token: &str,
    ) -> Result<Self, Vec<(&'static str, Invalid)>> {
        let mut refused = Vec::new();
        if size < 0 {
            let negative = Invalid::new(Kind::InvalidCount, "must not be negative").with("limit", MAX_SIZE);
            refused.push(("page_size", negative));
        }
        let filter = hash(list, filters);
        let after = parse_token(token, filter);
        match after {
            Ok(after) if refused.is_empty() => {
                let size = if size == 0 { DEFAULT_SIZE } else { size.min(MAX_SIZE) };
                Ok(Self { size: i64::from(size), after, filter })
            }
            Ok(_) => Err(refused),
            Err(invalid) => {
                refused.push(("page_token", invalid));
                Err(refused)
            }
        }
    }

    /// As [`Page::parse`], for a list that is ordered by ids of messages.
    ///
    /// # Errors
    /// Those of [`Page::parse`].
    pub fn parse_by_id(
        list: &str,
        filters: &[&str],
        size: i32,
        token: &str,
    ) -> Result<Self, Vec<(&'static str, Invalid)>> {
        let page = Self::parse(list, filters, size, token)?;
        match page.after(0).is_none_or(|key| key.parse::<i64>().is_ok()) {
            true => Ok(page),
            false => Err(vec![("page_token", malformed())]),
        }
    }

    /// The id after which a page begins that is ordered by ids.
    pub fn after_id(&self) -> i64 {
        self.after(0).and_then(|key| key.parse().ok()).unwrap_or(i64::MIN)
    }

    /// How many items the page holds at most.
    pub fn size(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }

    /// A page of messages, with the token of the one that begins after an id, if another follows.
    pub fn up_to<T>(&self, items: Vec<T>, next_after: Option<i64>) -> Paged<T> {
        let next_page_token = next_after.map_or_else(String::new, |id| self.token(&[id.to_string()]));
        Paged { items, next_page_token }
    }

    /// How many rows to ask for: one more than the page holds, which tells whether another follows.
    pub fn rows(&self) -> i64 {
        self.size + 1
    }

    /// The part of the key after which the page begins; none on the first page.
    pub fn after(&self, part: usize) -> Option<&str> {
        self.after.as_ref().and_then(|key| key.get(part)).map(String::as_str)
    }

    /// Cuts the rows of [`Page::rows`] to the page, in number and in bytes, and makes the next token from the last item's
    /// key.
    pub fn cut<T>(
        &self,
        mut items: Vec<T>,
        bytes: impl Fn(&T) -> usize,
        key: impl Fn(&T) -> Vec<String>,
    ) -> Paged<T> {
        let mut left = MAX_BYTES;
        let fitting = items.iter().take_while(|item| {
            let fits = bytes(item) + ITEM_BYTES <= left;
            left = left.saturating_sub(bytes(item) + ITEM_BYTES);
            fits
        });
        let size = self.size().min(fitting.count().max(1));
        if items.len() <= size {
            return Paged { items, next_page_token: String::new() };
        }
        items.truncate(size);
        let next_page_token = items.last().map_or_else(String::new, |last| self.token(&key(last)));
        Paged { items, next_page_token }
    }

    fn token(&self, key: &[String]) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.filter.to_be_bytes());
        bytes.extend(key.join("\0").as_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

fn parse_token(token: &str, filter: u32) -> Result<Option<Vec<String>>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    let refuse = |why: &str| Invalid::new(Kind::InvalidPageToken, format!("the page token {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| malformed())?;
    let (body, checksum) = bytes.split_last_chunk::<4>().ok_or_else(malformed)?;
    if crc32fast::hash(body).to_be_bytes() != *checksum {
        return Err(malformed());
    }
    let (head, key) = body.split_first_chunk::<5>().ok_or_else(malformed)?;
    if head[0] != VERSION {
        return Err(refuse("has a version that this server does not know"));
    }
    if head[1..] != filter.to_be_bytes() {
        return Err(refuse("belongs to another list or filter; begin again without a token"));
    }
    let key = std::str::from_utf8(key).map_err(|_| malformed())?;
    Ok(Some(key.split('\0').map(str::to_owned).collect()))
}

fn malformed() -> Invalid {
    Invalid::new(Kind::InvalidPageToken, "the page token is malformed")
}

fn hash(list: &str, filters: &[&str]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in std::iter::once(&list).chain(filters) {
        hasher.update(part.as_bytes());
        hasher.update(b"\0");
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(filters: &[&str], token: &str) -> Result<Page, Vec<(&'static str, Invalid)>> {
        Page::parse("queues", filters, 2, token)
    }

    #[test]
    fn a_size_is_defaulted_coerced_or_refused() {
        let size = |size| Page::parse("queues", &[], size, "").map(|page| page.rows());
        assert_eq!(size(0), Ok(101));
        assert_eq!(size(5_000), Ok(1_001));
        assert!(size(-1).is_err());
    }

    #[test]
    fn a_page_has_at_most_a_megabyte_and_at_least_one_item() {
        let opened = Page::parse("queues", &[], 1_000, "").expect("a first page");
        let cut = opened.cut(vec![0; 1_000], |_| 4_000, |_| vec!["key".to_owned()]);
        assert_eq!(cut.items.len(), 244);
        assert!(!cut.next_page_token.is_empty());
        let cut = opened.cut(vec![0; 2], |_| 2_000_000, |_| vec!["key".to_owned()]);
        assert_eq!(cut.items.len(), 1);
        assert!(!cut.next_page_token.is_empty());
    }

    #[test]
    fn a_list_by_ids_takes_only_tokens_with_an_id() {
        let open = |token: &str| Page::parse_by_id("messages", &[], 2, token);
        let first = open("").expect("a first page");
        assert_eq!(first.after_id(), i64::MIN);
        let next = open(&first.up_to(vec![1, 2], Some(7)).next_page_token).expect("a next page");
        assert_eq!(next.after_id(), 7);
        assert!(first.up_to(vec![1, 2], None).next_page_token.is_empty());
        let odd = first.token(&["seven".to_owned()]);
        assert_eq!(open(&odd).expect_err("no id")[0].0, "page_token");
    }

    proptest! {
        #[test]
        fn a_token_gives_back_its_key(first in "[^\0]{0,20}", second in "[^\0]{0,20}", prefix in ".*") {
            let opened = page(&[&prefix], "").expect("a first page");
            let items = vec![first.clone(), first.clone(), second.clone()];
            let cut = opened.cut(items, String::len, |item| vec![item.clone(), second.clone()]);
            let next = page(&[&prefix], &cut.next_page_token).expect("a next page");
            prop_assert_eq!(next.after(0), Some(first.as_str()));
            prop_assert_eq!(next.after(1), Some(second.as_str()));
        }

        #[test]
        fn a_token_of_another_filter_or_a_changed_one_is_refused(key in "[a-z]{1,20}", at in 0_usize..12, to in "[A-Z]") {
            let opened = page(&["a"], "").expect("a first page");
            let token = opened.cut(vec![1, 2, 3], |_| 1, |_| vec![key.clone()]).next_page_token;
            prop_assert!(page(&["b"], &token).is_err());
            let mut changed = token.clone();
            changed.replace_range(at..=at, &to);
            if changed != token {
                prop_assert!(page(&["a"], &changed).is_err());
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".+") {
            prop_assert!(page(&[], &text).is_err());
        }
    }
}
