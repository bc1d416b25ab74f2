use jetwright_testing::await_until;

use crate::support::{Bench, Gate, SOON, Scripted, publish};

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
