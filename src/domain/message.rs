//! Messages on their way in and out.

use super::json::{self, JsonKind, Member};
use super::{DeduplicationId, Invalid, Kind, Policy, Receipt, Timestamp};

/// The header under which pgmq looks for a message's FIFO group.
pub const GROUP_HEADER: &str = "x-pgmq-group";

/// The most bytes that headers may take, as Postgres renders them.
pub const MAX_HEADERS_BYTES: usize = 64 * 1024;

/// The most bytes that a group's name may have.
pub const MAX_GROUP_BYTES: usize = 256;

/// When a sent message becomes visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// So many milliseconds after the database takes it; 0 means at once.
    AfterMillis(i64),
    /// At a moment; one in the past means at once.
    At(Timestamp),
    /// As the policy of the queue says to which a topic leads; at once if it says nothing.
    ByPolicy,
}

impl Schedule {
    /// Visible as soon as it is committed.
    pub const NOW: Self = Self::AfterMillis(0);
}

/// A message to be sent; its texts are known to be what Postgres accepts as jsonb.
#[derive(Debug, Clone)]
pub struct OutgoingMessage {
    message: String,
    headers: Option<String>,
    schedule: Schedule,
    deduplication_id: Option<DeduplicationId>,
    rendered_bytes: usize,
}

impl OutgoingMessage {
    /// Checks a message's texts, of which the body may take so many bytes, and puts its group into the headers.
    ///
    /// # Errors
    /// The name of the refused field and why, each of `message`, `headers` and `group` at most once.
    pub fn parse(
        message: String,
        headers: String,
        group: &str,
        schedule: Schedule,
        max_bytes: usize,
    ) -> Result<Self, Vec<(&'static str, Invalid)>> {
        let mut refused = Vec::new();
        let rendered_bytes =
            check_body(&message, max_bytes).map_err(|invalid| refused.push(("message", invalid)));
        let headers = check_headers(&headers).and_then(|()| check_group(group).map(|()| headers));
        match headers.and_then(|headers| join_group(headers, group)) {
            Ok(headers) => {
                if let Ok(rendered_bytes) = rendered_bytes {
                    return Ok(Self { message, headers, schedule, deduplication_id: None, rendered_bytes });
                }
            }
            Err(invalid) => {
                let field = if invalid.kind == Kind::InvalidGroup { "group" } else { "headers" };
                refused.push((field, invalid));
            }
        }
        Err(refused)
    }

    /// The body: JSON text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The headers: the text of a JSON object, if there are any.
    pub fn headers(&self) -> Option<&str> {
        self.headers.as_deref()
    }

    /// The same under a deduplication id, if there is one.
    #[must_use]
    pub fn under(mut self, deduplication_id: Option<DeduplicationId>) -> Self {
        self.deduplication_id = deduplication_id;
        self
    }

    /// The id under which it is stored once, if it has one.
    pub fn deduplication_id(&self) -> Option<&DeduplicationId> {
        self.deduplication_id.as_ref()
    }

    /// The memory that it takes while it waits to be sent, with its caller's share.
    pub fn held_bytes(&self) -> usize {
        256 + self.message.len() + self.headers.as_ref().map_or(0, String::len)
    }

    /// When it becomes visible.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// The same as a queue's policy has it, where that was left to it.
    #[must_use]
    pub fn under_policy(mut self, policy: &Policy) -> Self {
        if self.schedule == Schedule::ByPolicy {
            self.schedule = policy.schedule();
        }
        self
    }

    /// Checks that the body is not larger than a queue's policy allows.
    ///
    /// # Errors
    /// `MessageTooLarge`.
    pub fn check_size(&self, policy: &Policy) -> Result<(), Invalid> {
        match policy.max_message_bytes.and_then(|limit| usize::try_from(limit).ok()) {
            Some(limit) if self.rendered_bytes > limit => {
                Err(too_large(Kind::MessageTooLarge, self.rendered_bytes, limit))
            }
            _ => Ok(()),
        }
    }
}

/// The bytes of a good body.
fn check_body(message: &str, max_bytes: usize) -> Result<usize, Invalid> {
    if message.is_empty() {
        return Err(Invalid::new(Kind::MissingField, "a message is needed; the JSON text null is one"));
    }
    let scanned = json::scan(message)
        .map_err(|error| Invalid::new(Kind::InvalidJson, error.to_string()).with("position", error.offset))?;
    if scanned.rendered_bytes > max_bytes {
        return Err(too_large(Kind::MessageTooLarge, scanned.rendered_bytes, max_bytes));
    }
    Ok(scanned.rendered_bytes)
}

fn check_headers(headers: &str) -> Result<(), Invalid> {
    if headers.is_empty() {
        return Ok(());
    }
    let scanned = json::scan(headers).map_err(|error| {
        Invalid::new(Kind::InvalidHeaders, error.to_string()).with("position", error.offset)
    })?;
    if scanned.kind != JsonKind::Object {
        return Err(Invalid::new(Kind::InvalidHeaders, "headers must be a JSON object"));
    }
    if scanned.rendered_bytes > MAX_HEADERS_BYTES {
        return Err(too_large(Kind::InvalidHeaders, scanned.rendered_bytes, MAX_HEADERS_BYTES));
    }
    Ok(())
}

fn check_group(group: &str) -> Result<(), Invalid> {
    if group.len() > MAX_GROUP_BYTES {
        return Err(Invalid::new(
            Kind::InvalidGroup,
            format!("a group has at most {MAX_GROUP_BYTES} bytes; this one has {}", group.len()),
        ));
    }
    if group.contains('\0') {
        return Err(Invalid::new(Kind::InvalidGroup, "a group must not contain a NUL character"));
    }
    Ok(())
}

fn join_group(headers: String, group: &str) -> Result<Option<String>, Invalid> {
    match (headers.is_empty(), group.is_empty()) {
        (true, true) => Ok(None),
        (false, true) => Ok(Some(headers)),
        (true, false) => Ok(Some(json::with_member("{}", GROUP_HEADER, group))),
        (false, false) => match json::top_level_string(&headers, GROUP_HEADER) {
            None => Ok(Some(json::with_member(&headers, GROUP_HEADER, group))),
            Some(Member::String(same)) if same == group => Ok(Some(headers)),
            Some(_) => Err(Invalid::new(
                Kind::InvalidGroup,
                format!("the headers hold another {GROUP_HEADER}; give one of the two, or the same"),
            )),
        },
    }
}

fn too_large(kind: Kind, bytes: usize, limit: usize) -> Invalid {
    Invalid::new(kind, format!("may take {limit} bytes as Postgres renders jsonb; this takes {bytes}"))
        .with("limit", limit)
}

/// In which order a read takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ordering {
    /// By id, without regard to groups (`pgmq.read`).
    Unordered,
    /// As many as possible of the oldest group (`pgmq.read_grouped`).
    Grouped,
    /// One of each group in turn (`pgmq.read_grouped_rr`).
    GroupedRoundRobin,
    /// The first of each group only (`pgmq.read_grouped_head`).
    GroupedHead,
}

impl Ordering {
    /// Whether what is read together stays together, because it can be of one group. Heads of groups are independent of
    /// each other.
    pub fn reads_groups_together(self) -> bool {
        matches!(self, Self::Grouped | Self::GroupedRoundRobin)
    }
}

/// A message as a queue holds it.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id in the queue.
    pub msg_id: i64,
    /// How often it has been read.
    pub read_ct: i32,
    /// When it was sent.
    pub enqueued_at: Timestamp,
    /// When it was read last; none if never, or on a pgmq older than 1.10.
    pub last_read_at: Option<Timestamp>,
    /// When it becomes visible again.
    pub vt: Timestamp,
    /// The body; none for SQL NULL.
    pub message: Option<String>,
    /// The headers; none for SQL NULL.
    pub headers: Option<String>,
}

impl Message {
    /// What its texts take in a reply.
    pub fn text_bytes(&self) -> usize {
        [&self.message, &self.headers].into_iter().flatten().map(String::len).sum()
    }
}

/// A message that a read gave to one caller, with the receipt that settles it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Names this delivery.
    pub receipt: Receipt,
}

/// What became of one item of a settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The message is gone.
    NotFound,
    /// Another read has taken the message since; nothing was changed.
    Stale,
}

/// The outcome of one item, with the message's new `vt` where it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemResult {
    /// What became of it.
    pub outcome: Outcome,
    /// The new visibility time, when the item set one.
    pub vt: Option<Timestamp>,
}
