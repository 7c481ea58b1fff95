//! A trickle of messages, each carrying the moment at which it was sent, to a consumer that waits for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::{MissedTickBehavior, interval};

use super::channel::connect;
use super::consume::{Workers, open};
use super::meter::Meter;
use crate::proto::SendRequest;
use crate::proto::queue_service_client::QueueServiceClient;

/// Sends by unary `Send`, and waits in `Consume`.
pub async fn start(meter: &Arc<Meter>, server: &str, queue: &str, per_second: u32) -> Result<()> {
    let mut channels = connect(server, 2).await?.into_iter();
    let (sender, consumer) =
        (channels.next().context("no connection")?, channels.next().context("no connection")?);
    let epoch = Instant::now();
    let settled = Meter::new();
    let workers = Workers { queue: queue.to_owned(), workers: 8, max_in_flight: 100, awaits_verdict: false };
    let arrivals = Arc::clone(meter);
    open(&settled, consumer, &workers, move |message| arrived(&arrivals, epoch, message.message.as_bytes()))
        .await?;
    meter.depends_on(settled);
    let (client, meter, queue) = (QueueServiceClient::new(sender), Arc::clone(meter), queue.to_owned());
    tokio::spawn(async move {
        let mut ticks = ticks(per_second);
        loop {
            ticks.tick().await;
            let (mut client, meter) = (client.clone(), Arc::clone(&meter));
            let request =
                SendRequest { queue: queue.clone(), message: stamp(epoch), ..SendRequest::default() };
            tokio::spawn(async move {
                if let Err(status) = client.send(request).await {
                    meter.failed(status);
                }
            });
        }
    });
    Ok(())
}

/// So many ticks a second, none of which is made up for.
pub fn ticks(per_second: u32) -> tokio::time::Interval {
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// A body of 22 bytes that tells the microseconds since `epoch`.
pub fn stamp(epoch: Instant) -> String {
    format!(r#"{{"at":"{:013}"}}"#, epoch.elapsed().as_micros())
}

/// Counts a message that carries a stamp.
pub fn arrived(meter: &Meter, epoch: Instant, body: &[u8]) {
    let digits = body.iter().filter(|byte| byte.is_ascii_digit());
    let micros = digits.fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    meter.done(0, epoch + Duration::from_micros(micros), 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_as_long_as_other_bodies() {
        assert_eq!(stamp(Instant::now()).len(), 22);
    }
}
