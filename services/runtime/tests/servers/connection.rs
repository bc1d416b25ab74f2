use async_nats::jetstream::stream;
use jetwright_runtime::Published;
use jetwright_testing::{RawClient, await_until};

use crate::{
    proxy::Proxy,
    support::{Bench, Gate, Running, SOON, Scripted, publish},
};

/// The lone carriage return is no end of a line to the server, and makes the task of the client that receives it panic (async-nats
/// 0.51).
const POISON: &[u8] = b"NATS/1.0\r\nEvent-Type: tests.v1.Number\r\nNote: a\rb\r\n\r\n";

/// Sends what ends a service's client to the inbox for its replies.
struct Poisoner {
    client: RawClient,
    inbox: String,
}

impl Poisoner {
    /// Finds the inbox by an event that the service publishes.
    async fn of(bench: &Bench, service: &Running) -> Self {
        let mut client = RawClient::connect(bench.nats.url()).await;
        client.subscribe("numbers.0").await;
        publish(&service.publisher, 0).await;
        let reply = client.next_reply_subject().await;
        let mut tokens = reply.rsplitn(3, '.');
        let inbox = tokens.nth(2).unwrap().to_owned();
        Self { client, inbox }
    }

    async fn poison(&mut self) {
        let to = format!("{}.0.0", self.inbox);
        self.client.publish(&to, POISON, b"").await;
    }
}

/// How often the service was connected.
fn connections(service: &Running) -> u64 {
    let start = "jetwright_nats_connections_total ";
    let metrics = service.metrics();
    metrics.lines().find_map(|line| line.strip_prefix(start)).unwrap().parse().unwrap()
}

async fn await_connections(service: &Running, count: u64) {
    await_until("connections", SOON, async || match connections(service) {
        found if found >= count => Ok(()),
        found => Err(format!("{found} of {count}")),
    })
    .await;
    service.await_ready().await;
}

#[tokio::test]
async fn when_a_client_ends_for_good_its_publishers_readers_and_handlers_go_on_with_another() {
    let bench = Bench::start().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    let mut poisoner = Poisoner::of(&bench, &service).await;
    service.await_ready().await;
    for round in 1..=2 {
        poisoner.poison().await;
        await_connections(&service, 1 + round).await;
        publish(&service.publisher, round).await;
        handler.await_calls(usize::try_from(1 + round).unwrap()).await;
        let history = service.reader.history("numbers", "numbers.*").await.unwrap();
        assert_eq!(history.last_sequence(), 1 + round);
        bench.await_drained().await;
        assert_eq!(connections(&service), 1 + round, "a client ended more than once");
    }
    assert_eq!((service.unconfirmed(), handler.values()), (0, vec![0, 1, 2]));
    service.stop().await;
}

#[tokio::test]
async fn a_publish_in_flight_when_the_client_ends_is_repeated_and_stores_one_event() {
    let mut bench = Bench::start().await;
    let proxy =
        Proxy::before(bench.nats.url(), |_, payload| payload.contains(r#"{"stream":"numbers""#)).await;
    bench.url.clone_from(&proxy.url);
    let service = bench.run(&Scripted::content()).await;
    let mut poisoner = Poisoner::of(&bench, &service).await;
    proxy.lose(1);
    let publisher = service.publisher.clone();
    let publishing = tokio::spawn(async move { publish(&publisher, 1).await });
    await_until("a lost answer", SOON, async || match proxy.left_to_lose() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    poisoner.poison().await;
    let stored = Published { stream: "numbers".to_owned(), sequence: 2, duplicate: true };
    assert_eq!(publishing.await.unwrap(), stored);
    assert_eq!((bench.stored().await, connections(&service)), (2, 2));
    service.stop().await;
}

#[tokio::test]
async fn an_event_that_the_client_cannot_read_costs_its_reader_one_connection() {
    let bench = Bench::without_consumer().await;
    let direct = stream::Config {
        name: "numbers".to_owned(),
        subjects: vec!["numbers.*".to_owned()],
        allow_direct: true,
        ..Default::default()
    };
    bench.jetstream.update_stream(direct).await.unwrap();
    let service = bench.run(&Scripted::content()).await;
    let publisher = &service.publisher;
    bench.publish(publisher, 0..3).await;
    RawClient::connect(bench.nats.url()).await.publish("numbers.666", POISON, b"").await;
    bench.publish(publisher, 3..6).await;
    let history = service.reader.history("numbers", "numbers.*").await;
    assert!(history.as_ref().map_or(true, |history| history.last_sequence() == 7), "{history:?}");
    assert_eq!(publish(publisher, 6).await.sequence, 8);
    let whole = service.reader.history("numbers", "numbers.6").await.unwrap();
    assert_eq!((whole.last_sequence(), connections(&service)), (8, 2));
    service.stop().await;
}

#[tokio::test]
async fn a_service_starts_without_nats_and_works_when_it_comes() {
    let bench = Bench::start().await;
    bench.nats.stop().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_unready("not connected to NATS").await;
    bench.nats.start_again().await;
    service.await_ready().await;
    publish(&service.publisher, 1).await;
    handler.await_calls(1).await;
    assert!(service.metrics().contains("jetwright_nats_connected 1"), "{}", service.metrics());
    service.stop().await;
}

#[tokio::test]
async fn killing_nats_under_load_loses_nothing() {
    let bench = Bench::without_consumer().await.ack_wait(2000);
    bench.create_consumer().await;
    // Held at these until the server is dead, so that each kill comes while there is work to do.
    let gates = [(50, Gate::default()), (200, Gate::default())];
    let held = gates.clone();
    let handler = Scripted::new(move |value, _| {
        let gate = held.iter().find(|(first, _)| (*first..first + 20).contains(&value));
        let gate = gate.map(|(_, gate)| gate.clone());
        async move {
            if let Some(gate) = gate {
                gate.opened().await;
            }
            Ok(())
        }
    });
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 0..400).await;
    let service = bench.run(&handler).await;
    for (first, gate) in gates {
        await_until("a full hand", SOON, async || match handler.values().binary_search(&(first + 15)) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("{} values", handler.values().len())),
        })
        .await;
        bench.nats.kill();
        gate.open();
        service.await_unready("not connected to NATS").await;
        bench.nats.start_again().await;
        service.await_ready().await;
    }
    bench.publish(&service.publisher, 400..410).await;
    bench.await_drained().await;
    assert_eq!(handler.values(), (0..410).collect::<Vec<_>>());
    service.stop().await;
}

#[tokio::test]
async fn a_service_stops_in_time_while_nats_is_away() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    service.await_ready().await;
    bench.nats.kill();
    service.await_unready("not connected to NATS").await;
    service.stop().await;
}
