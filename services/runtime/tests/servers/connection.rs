use std::time::Duration;

use tokio::time::sleep;

use crate::support::{Bench, Scripted, publish};

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
    let handler = Scripted::new(|_, _| async {
        sleep(Duration::from_millis(10)).await;
        Ok(())
    });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..400).await;
    for _ in 0..2 {
        handler.await_calls(handler.calls().len() + 50).await;
        bench.nats.kill();
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
