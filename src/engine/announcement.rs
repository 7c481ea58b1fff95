//! What one replica tells the others of its queues, as text that fits into a notification.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::events::{Happening, Untold};
use crate::domain::QueueName;

/// The most bytes of one payload; Postgres takes less than 8,000.
const MAX_BYTES: usize = 7_500;

/// The most payloads of one announcement. Of more queues than fit, others look at all.
const MAX_PAYLOADS: usize = 8;

/// Begins the line of a queue that has messages which are not visible yet, before the milliseconds until the first is.
const DUE: char = 'd';

/// Begins every payload: what comes after it may change with this number.
const FORM: &str = "1";

/// What another replica, or this one, has told.
#[derive(Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The replica that told it.
    pub replica: String,
    /// What it told.
    pub news: News,
}

/// What a replica tells.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// It listens. It hears this itself, and so learns whether announcements arrive.
    Hello,
    /// Something may have happened to any queue.
    Everything,
    /// Policies were changed. The database tells it, whoever has changed them.
    Policies,
    /// What happened to queues, in any order.
    Queues(Vec<(QueueName, Told)>),
}

/// What a replica tells of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Something has happened.
    Happened(Happening),
    /// Messages came, of which the first becomes visible after so long.
    Due(Duration),
}

/// The payload with which a replica says that it listens.
pub fn hello(replica: &str) -> String {
    format!("{FORM} {replica} hello")
}

/// The payload of a replica that lost count.
pub fn everything(replica: &str) -> String {
    format!("{FORM} {replica} everything")
}

/// The payloads that tell what happened.
pub fn payloads(replica: &str, untold: HashMap<QueueName, Untold>) -> Vec<String> {
    let head = format!("{FORM} {replica} queues");
    let now = Instant::now();
    let mut payloads = vec![head.clone()];
    let lines = untold.into_iter().flat_map(|(queue, Untold { happening, due })| {
        let happening = happening.map(|happening| format!("\n{}{}", letter(happening), queue.as_str()));
        let due = due.map(|due| {
            let millis = due.saturating_duration_since(now).as_millis();
            format!("\n{DUE}{millis} {}", queue.as_str())
        });
        [happening, due].into_iter().flatten().map(move |line| (queue.clone(), line))
    });
    for (queue, line) in lines {
        // A name from before the rules for names may have a line's end in it.
        if queue.as_str().contains('\n') || head.len() + line.len() > MAX_BYTES {
            return vec![everything(replica)];
        }
        match payloads.last_mut() {
            Some(last) if last.len() + line.len() <= MAX_BYTES => last.push_str(&line),
            _ => payloads.push(head.clone() + &line),
        }
        if payloads.len() > MAX_PAYLOADS {
            return vec![everything(replica)];
        }
    }
    payloads
}

impl Announcement {
    /// Reads a payload; none if it is no announcement. What a newer replica says and this one does not understand
    /// means everything.
    pub fn parse(payload: &str) -> Option<Self> {
        let (head, lines) = payload.split_once('\n').unwrap_or((payload, ""));
        let mut words = head.split(' ');
        let (form, replica, kind) = (words.next()?, words.next()?.to_owned(), words.next()?);
        let news = match kind {
            "hello" => News::Hello,
            "policies" => News::Policies,
            "queues" if form == FORM => News::Queues(
                lines.split('\n').filter(|line| !line.is_empty()).map(parse_line).collect::<Option<_>>()?,
            ),
            _ => News::Everything,
        };
        Some(Self { replica, news })
    }
}

fn letter(happening: Happening) -> char {
    match happening {
        Happening::Settled => 's',
        Happening::Arrived => 'a',
        Happening::Remade => 'r',
    }
}

fn parse_line(line: &str) -> Option<(QueueName, Told)> {
    let letter = line.chars().next()?;
    if let Some(due) = line.strip_prefix(DUE) {
        let (millis, queue) = due.split_once(' ')?;
        let wait = Duration::from_millis(millis.parse().ok()?);
        return Some((QueueName::try_from(queue.to_owned()).ok()?, Told::Due(wait)));
    }
    let happening = match letter {
        's' => Happening::Settled,
        'a' => Happening::Arrived,
        // The greatest, which contains whatever a newer replica means.
        _ => Happening::Remade,
    };
    let queue = QueueName::try_from(line[letter.len_utf8()..].to_owned()).ok()?;
    Some((queue, Told::Happened(happening)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::try_from(name.to_owned()).expect("a good name")
    }

    fn happened(happening: Happening) -> Untold {
        Untold { happening: Some(happening), due: None }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_is_what_is_heard() {
        let wait = Duration::from_millis(1_234);
        let due = Some(Instant::now() + wait);
        let told = HashMap::from([
            (queue("a"), happened(Happening::Arrived)),
            (queue("b c"), Untold { happening: Some(Happening::Settled), due }),
            (queue("d"), happened(Happening::Remade)),
            (queue("d 7"), Untold { happening: None, due }),
        ]);
        let payloads = payloads("host-1", told);
        let heard = Announcement::parse(&payloads[0]).expect("an announcement");
        assert_eq!((payloads.len(), heard.replica.as_str()), (1, "host-1"));
        let News::Queues(mut queues) = heard.news else { panic!("{heard:?}") };
        queues.sort_by_key(|(queue, told)| (queue.clone(), matches!(told, Told::Due(_))));
        assert_eq!(
            queues,
            [
                (queue("a"), Told::Happened(Happening::Arrived)),
                (queue("b c"), Told::Happened(Happening::Settled)),
                (queue("b c"), Told::Due(wait)),
                (queue("d"), Told::Happened(Happening::Remade)),
                (queue("d 7"), Told::Due(wait)),
            ]
        );
    }

    #[test]
    fn too_many_queues_are_everything() {
        let told = (0..100_000)
            .map(|number| (queue(&format!("queue_{number}")), happened(Happening::Arrived)))
            .collect();
        assert_eq!(payloads("r", told), [everything("r")]);
    }

    #[test]
    fn what_a_newer_replica_says_is_everything() {
        let news = |payload: &str| Announcement::parse(payload).map(|heard| heard.news);
        assert_eq!(news("2 r queues\nq orders"), Some(News::Everything));
        assert_eq!(news("1 r surprises"), Some(News::Everything));
        assert_eq!(news("1 r everything"), Some(News::Everything));
        assert_eq!(news("1 r hello"), Some(News::Hello));
        assert_eq!(news("1 - policies"), Some(News::Policies));
        for nothing in ["", "1", "1 r", "\n"] {
            assert_eq!(news(nothing), None, "{nothing:?}");
        }
    }

    proptest! {
        #[test]
        fn every_payload_fits_and_nothing_is_lost(names in prop::collection::hash_set("[a-z_]{1,47}", 0..2_000)) {
            let told: HashMap<_, _> = names.iter().map(|name| (queue(name), Told::Happened(Happening::Settled))).collect();
            let untold = told.keys().map(|queue| (queue.clone(), happened(Happening::Settled))).collect();
            let payloads = payloads("replica", untold);
            let mut heard = HashMap::new();
            for payload in &payloads {
                prop_assert!(payload.len() < 8_000);
                match Announcement::parse(payload).expect("an announcement").news {
                    News::Queues(queues) => heard.extend(queues),
                    News::Everything => heard.clone_from(&told),
                    News::Hello | News::Policies => prop_assert!(false),
                }
            }
            prop_assert_eq!(heard, told);
        }

        #[test]
        fn any_payload_is_read_or_refused(payload: String) {
            let _ = Announcement::parse(&payload);
        }
    }
}
