//! Receipts: each names exactly one delivery of one message.
//!
//! The text is the URL-safe base64 of fixed-width big-endian fields and a checksum:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 8 | hash of the queue's name |
//! | 8 | the queue's `created_at`, which tells incarnations of a name apart |
//! | 8 | `msg_id` |
//! | 4 | `read_ct` |
//! | 8 | `enqueued_at` |
//! | 8 | `last_read_at`; the least value stands for none |
//! | 4 | CRC-32 of all before |
//!
//! A receipt is no secret and no proof of identity: whoever can call the server can settle by id as well. It
//! is a fence: it changes nothing unless the message is still as this delivery left it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Invalid, Kind, Message, QueueName, Timestamp};

const VERSION: u8 = 1;
const BODY_BYTES: usize = 45;
const BYTES: usize = BODY_BYTES + 4;
const NO_LAST_READ_AT: i64 = i64::MIN;

/// The name of one delivery of one message of one incarnation of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receipt {
    queue_hash: u64,
    queue_created_at: Timestamp,
    msg_id: i64,
    read_ct: i32,
    enqueued_at: Timestamp,
    last_read_at: Option<Timestamp>,
}

impl Receipt {
    /// Names a delivery from the queue that was made at `queue_created_at`.
    pub fn new(
        queue: &QueueName,
        queue_created_at: Timestamp,
        msg_id: i64,
        read_ct: i32,
        enqueued_at: Timestamp,
        last_read_at: Option<Timestamp>,
    ) -> Self {
        Self { queue_hash: hash(queue), queue_created_at, msg_id, read_ct, enqueued_at, last_read_at }
    }

    /// Reads a receipt's text and checks that it is one of this queue's.
    ///
    /// # Errors
    /// `InvalidReceipt` for a text that is none of ours, was cut or changed, or names another queue.
    pub fn parse(text: &str, queue: &QueueName) -> Result<Self, Invalid> {
        let refuse = |why: &str| Invalid::new(Kind::InvalidReceipt, format!("the receipt {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refuse("is malformed"))?;
        let bytes: [u8; BYTES] = bytes.try_into().map_err(|_| refuse("is malformed or truncated"))?;
        let (body, checksum) = bytes.split_at(BODY_BYTES);
        if crc32fast::hash(body).to_be_bytes() != checksum {
            return Err(refuse("is malformed"));
        }
        let mut fields = Fields(body);
        if fields.take::<1>() != [VERSION] {
            return Err(refuse("has a version that this server does not know"));
        }
        let receipt = Self {
            queue_hash: u64::from_be_bytes(fields.take()),
            queue_created_at: fields.timestamp(),
            msg_id: i64::from_be_bytes(fields.take()),
            read_ct: i32::from_be_bytes(fields.take()),
            enqueued_at: fields.timestamp(),
            last_read_at: Some(fields.timestamp()).filter(|at| at.unix_micros() != NO_LAST_READ_AT),
        };
        if receipt.queue_hash != hash(queue) {
            return Err(refuse("belongs to another queue"));
        }
        Ok(receipt)
    }

    /// The receipt's text.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend(self.queue_hash.to_be_bytes());
        bytes.extend(self.queue_created_at.unix_micros().to_be_bytes());
        bytes.extend(self.msg_id.to_be_bytes());
        bytes.extend(self.read_ct.to_be_bytes());
        bytes.extend(self.enqueued_at.unix_micros().to_be_bytes());
        bytes.extend(self.last_read_at.map_or(NO_LAST_READ_AT, Timestamp::unix_micros).to_be_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Whether a message is still as this delivery left it.
    pub fn names(&self, message: &Message) -> bool {
        let of_message = (message.msg_id, message.read_ct, message.enqueued_at, message.last_read_at);
        of_message == (self.msg_id, self.read_ct, self.enqueued_at, self.last_read_at)
    }

    /// When the queue of this delivery was made.
    pub fn queue_created_at(&self) -> Timestamp {
        self.queue_created_at
    }

    /// The message's id.
    pub fn msg_id(&self) -> i64 {
        self.msg_id
    }

    /// The message's count of reads, this delivery included.
    pub fn read_ct(&self) -> i32 {
        self.read_ct
    }

    /// When the message was sent.
    pub fn enqueued_at(&self) -> Timestamp {
        self.enqueued_at
    }

    /// When this delivery was read; none on a pgmq older than 1.10.
    pub fn last_read_at(&self) -> Option<Timestamp> {
        self.last_read_at
    }
}

/// Takes fixed-width fields off the front of a receipt's body, whose length was checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        let (front, rest) = self.0.split_at(N);
        field.copy_from_slice(front);
        self.0 = rest;
        field
    }

    fn timestamp(&mut self) -> Timestamp {
        Timestamp::from_unix_micros(i64::from_be_bytes(self.take()))
    }
}

/// FNV-1a, 64 bits: stable for ever, which std's hashers do not promise.
fn hash(queue: &QueueName) -> u64 {
    queue
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::try_from(name.to_owned()).expect("a good name")
    }

    fn receipts() -> impl Strategy<Value = Receipt> {
        (any::<i64>(), any::<i64>(), any::<i32>(), any::<i64>(), proptest::option::of(1..i64::MAX)).prop_map(
            |(created, msg_id, read_ct, enqueued, read)| {
                let at = Timestamp::from_unix_micros;
                Receipt::new(&queue("orders"), at(created), msg_id, read_ct, at(enqueued), read.map(at))
            },
        )
    }

    proptest! {
        #[test]
        fn a_receipt_survives_its_text(receipt in receipts()) {
            prop_assert_eq!(Receipt::parse(&receipt.encode(), &queue("orders")), Ok(receipt));
        }

        #[test]
        fn a_receipt_of_another_queue_is_refused(receipt in receipts(), name in "[a-z]{1,5}") {
            prop_assert!(Receipt::parse(&receipt.encode(), &queue(&name)).is_err());
        }

        #[test]
        fn a_changed_or_cut_receipt_is_refused(receipt in receipts(), at in 0_usize..66, to in "[A-Za-z0-9_-]") {
            let text = receipt.encode();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &to);
            if changed != text {
                prop_assert!(Receipt::parse(&changed, &queue("orders")).is_err());
            }
            prop_assert!(Receipt::parse(&text[..at], &queue("orders")).is_err());
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            prop_assert!(Receipt::parse(&text, &queue("orders")).is_err());
        }
    }
}
