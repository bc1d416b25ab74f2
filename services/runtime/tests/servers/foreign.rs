//! Events of any bytes: what the NATS client cannot parse ends its connection at every delivery, unless it is given up.

use std::collections::BTreeSet;

use data_encoding::BASE64;
use jetwright_testing::{RawClient, await_until};
use prost::Message;

use crate::support::{Bench, Number, Running, SOON, Scripted, count};

/// Publishes a header block as it is.
async fn publish_raw(bench: &Bench, subject: &[u8], header_block: &[u8], payload: &[u8]) {
    RawClient::connect(&bench.url).await.publish(subject, header_block, payload).await;
}

async fn bench() -> Bench {
    let mut bench = Bench::without_consumer().await.ack_wait(2000).keeping_dead_letters().await;
    bench.binding.max_ack_pending = 200;
    bench.create_consumer().await;
    bench
}

fn connections(service: &Running) -> u64 {
    count(&service.metrics(), "jetwright_nats_connections_total ")
}

async fn await_dead_letters(bench: &Bench, wanted: usize) {
    await_until(&format!("{wanted} dead letters"), SOON, async || match bench.dead_letters().await.len() {
        found if found == wanted => Ok(()),
        found => Err(found),
    })
    .await;
}

/// One such event, with good ones before and behind it.
async fn one_foreign_event(subject: &[u8], header_block: &[u8]) {
    one_foreign_event_on(bench().await, subject, header_block).await;
}

async fn one_foreign_event_on(bench: Bench, subject: &[u8], header_block: &[u8]) {
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    bench.publish(&service.publisher, 0..10).await;
    handler.await_calls(10).await;
    let payload = Number { value: 666 }.encode_to_vec();
    publish_raw(&bench, subject, header_block, &payload).await;
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 10..40).await;
    await_dead_letters(&bench, 1).await;
    bench.await_drained().await;
    let name = String::from_utf8_lossy(header_block);
    assert_eq!(handler.values(), (0..40).collect::<Vec<_>>(), "{name:?}");
    let letter = bench.dead_letters().await.remove(0);
    let header = |header: &str| letter.headers.get(header).map(|value| value.as_str().to_owned());
    assert_eq!(header("Dead-Letter-Original-Header-Block"), Some(BASE64.encode(header_block)), "{name:?}");
    assert_eq!(header("Dead-Letter-Reason").as_deref(), Some("undecodable"), "{name:?}");
    assert_eq!(letter.payload, payload, "{name:?}");
    assert_eq!(header("Dead-Letter-Subject").as_deref(), Some(&*String::from_utf8_lossy(subject)));
    assert!(connections(&service) <= 2, "{name:?}: {} connections", connections(&service));
    service.health.live().unwrap();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_name_with_a_space_costs_one_dead_letter() {
    one_foreign_event(b"numbers.666", b"NATS/1.0\r\nEvent-Type: tests.v1.Number\r\nX Trace: 1\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_stream_with_partitions_it_costs_one_dead_letter_too() {
    let header_block = b"NATS/1.0\r\nEvent-Type: tests.v1.Number\r\nX Trace: 1\r\n\r\n";
    one_foreign_event_on(bench().await.partitioned().await, b"numbers.666", header_block).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_value_of_another_encoding_costs_one_dead_letter() {
    one_foreign_event(b"numbers.666", b"NATS/1.0\r\nX: caf\xe9\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_line_without_a_colon_costs_one_dead_letter() {
    one_foreign_event(b"numbers.666", b"NATS/1.0\r\nno colon\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_value_with_a_bare_carriage_return_costs_one_dead_letter() {
    one_foreign_event(b"numbers.666", b"NATS/1.0\r\nEvent-Type: tests.v1.Number\r\nX: a\rb\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_of_another_encoding_costs_one_dead_letter() {
    one_foreign_event(b"numbers.caf\xe9", b"NATS/1.0\r\nEvent-Type: tests.v1.Number\r\n\r\n").await;
}

/// A publisher may write a status into its headers; that ends no pull request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_looks_like_a_status_is_an_event() {
    let bench = bench().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    for status in ["503", "404 No Messages", "408 Request Timeout", "409 Consumer Deleted"] {
        let block = format!("NATS/1.0 {status}\r\nEvent-Type: tests.v1.Number\r\n\r\n");
        publish_raw(&bench, b"numbers.1", block.as_bytes(), &Number { value: 1 }.encode_to_vec()).await;
    }
    handler.await_calls(4).await;
    bench.await_drained().await;
    assert_eq!((handler.calls().len(), connections(&service)), (4, 1));
    service.stop().await;
}

/// While its dead letter cannot be kept, such an event does not come again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_event_waits_for_the_stream_of_dead_letters() {
    let bench = bench().await;
    bench.jetstream.delete_stream("numbers-dlq").await.unwrap();
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    publish_raw(&bench, b"numbers.666", b"NATS/1.0\r\nX Trace: 1\r\n\r\n", b"x").await;
    await_until("the loss of the connection", SOON, async || match connections(&service) {
        2 => Ok(()),
        other => Err(other),
    })
    .await;
    // Longer than ackWait.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(connections(&service), 2);
    bench.create_dead_letters().await;
    await_dead_letters(&bench, 1).await;
    bench.publish(&service.publisher, 0..20).await;
    bench.await_drained().await;
    assert_eq!(handler.values(), (0..20).collect::<Vec<_>>());
    service.stop().await;
}

/// Reproducible random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    fn pick<'a>(&mut self, of: &[&'a [u8]]) -> &'a [u8] {
        of[self.below(of.len())]
    }

    /// Header lines, most of them strange.
    fn header_block(&mut self) -> Vec<u8> {
        let mut block = self
            .pick(&[b"NATS/1.0", b"NATS/1.0", b"NATS/1.0", b"NATS/1.0 503", b"NATS/1.0 ?", b"HTTP/1.1"])
            .to_vec();
        block.extend(b"\r\n");
        for _ in 0..self.below(4) {
            let name = self.pick(&[
                b"Event-Type",
                b"X Y",
                b"X",
                b"",
                b"caf\xe9",
                b"X:",
                b"\xf0\x9f\x92\xa9",
                b"traceparent",
            ]);
            let colon = self.pick(&[b":", b": ", b""]);
            let value = self.pick(&[
                b"tests.v1.Number",
                b"a\rb",
                b"",
                b"caf\xe9",
                b"\0",
                b"\xc3\xa9",
                b"a\tb",
                b"\r",
                b"00-x",
            ]);
            let end = self.pick(&[b"\r\n", b"\r\n", b"\n", b"\r\n folded\r\n"]);
            block.extend([name, colon, value, end].concat());
        }
        block.extend(self.pick(&[b"\r\n", b"\r\n", b"", b"\n"]));
        block
    }

    fn subject(&mut self) -> Vec<u8> {
        let token = self.pick(&[
            b"1",
            b"caf\xe9",
            b"caf\xc3\xa9",
            b"\xc2\xa0",
            b"\xe2\x80\x83",
            b"\x0b",
            b"\xff\xfe",
            b"a",
        ]);
        [b"numbers.", token].concat()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_bytes_events_are_made_of_each_is_handled_or_one_dead_letter() {
    const EVENTS: u64 = 40;
    let bench = bench().await;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for value in 1000..1000 + EVENTS {
        let (subject, block) = (random.subject(), random.header_block());
        publish_raw(&bench, &subject, &block, &Number { value }.encode_to_vec()).await;
    }
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 0..20).await;
    let stored = bench.stored().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    await_until("an end of all events", SOON * 6, async || {
        let info = bench.consumer_info().await;
        let waiting = (info.num_pending, info.num_ack_pending);
        if waiting == (0, 0) { Ok(()) } else { Err(format!("pending and unacknowledged: {waiting:?}")) }
    })
    .await;
    let letters = bench.dead_letters().await;
    let sequence = |letter: &async_nats::jetstream::message::StreamMessage| {
        letter.headers.get("Dead-Letter-Sequence").unwrap().as_str().parse::<u64>().unwrap()
    };
    let dead: BTreeSet<u64> = letters.iter().map(sequence).collect();
    assert_eq!(dead.len(), letters.len());
    let values = handler.values();
    assert!((0..20).all(|value| values.contains(&value)), "{values:?}");
    assert_eq!(values.len() as u64 + dead.len() as u64, stored, "{values:?} {dead:?}");
    service.health.live().unwrap();
    service.stop().await;
}
