//! Begins what the coordinator decides, what is due at the bucket, and what the cleaner deletes.

use futures::FutureExt as _;
use jetwright_crds::names::partition_consumer;
use jetwright_partitions::keys::{ConsumerId, PartitionId};
use serde::de::IgnoredAny;

use super::{Done, Session, clocks};
use crate::{jetstream::connections::Connection, partitions::cleaning::Due};

impl Session<'_> {
    /// Begins what is due.
    pub(super) fn act(&mut self) {
        self.keep();
        // Nor does it say that it is there: while it can decide nothing, members help themselves.
        if !self.is_synced {
            return;
        }
        self.report_ends();
        let requests = self.requests;
        for action in self.coordinator.poll(clocks(self.begun)) {
            self.under_way.push(async move { Done::Answered(requests.perform(action).await) }.boxed());
        }
    }

    fn report_ends(&mut self) {
        let ends = self.context.pods.ends();
        for (uid, at) in &ends {
            if self.told_ends.get(uid) != Some(at) {
                self.coordinator.container_ended(uid, *at);
            }
        }
        self.told_ends = ends.into_iter().collect();
    }

    /// Begins to delete what is over.
    pub(super) fn clean(&mut self) {
        if !self.is_synced {
            return;
        }
        let declared = self.consumers.iter().map(|consumer| consumer.id.clone()).collect();
        let (requests, connection) = (self.requests, self.connection);
        for due in self.cleaner.due(&declared, self.begun.elapsed()) {
            let doing = match due {
                Due::Remove(key, revision) => {
                    async move { Done::Answered(Some(requests.remove(key, revision).await)) }.boxed()
                }
                Due::Ask(partition) => async move {
                    let is_there = has_consumer(connection, &partition).await;
                    Done::Asked(partition.consumer, is_there)
                }
                .boxed(),
            };
            self.under_way.push(doing);
        }
    }
}

/// Whether JetStream has the consumer of a partition; None where it does not answer.
async fn has_consumer(connection: &Connection, id: &PartitionId) -> Option<bool> {
    let PartitionId { consumer: ConsumerId { stream, consumer }, partition } = id;
    let name = partition_consumer(consumer, *partition);
    let answer = connection.cache.api().consumer_info::<IgnoredAny>(stream, &name).await;
    answer.ok().map(|found| found.is_some())
}
