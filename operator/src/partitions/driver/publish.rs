//! Publishes how the partitions are shared out, for the pipelines of the objects, metrics and scale-downs.

use std::collections::HashSet;

use jetwright_partitions::{coordinator::Whereabouts, keys::MemberId, observer::Verdict};
use jiff::Timestamp;

use super::{Session, clocks};
use crate::{
    kubernetes::stores::Name,
    partitions::{
        declared::{OrderedConsumer, is_scaled_to_zero},
        registry::{Known, Seen},
        sharing::{Emptying, Sharing, emptying, holders},
    },
};

impl Session<'_> {
    /// Publishes how the partitions are shared out.
    pub(super) fn publish(&mut self) {
        let (now, partitions) = (clocks(self.begun), &self.context.partitions);
        let observer = self.coordinator.observer();
        let name = |id: &MemberId| {
            let is_alive = !matches!(observer.verdict(id, now), Verdict::Dead | Verdict::Unknown);
            let record = observer.record(id).filter(|_| is_alive)?;
            Some(record.pod.clone().unwrap_or_else(|| id.to_string()))
        };
        for OrderedConsumer { object, id, workload, .. } in &self.consumers {
            // What was seen of a bucket that is away is no news of who has what.
            let mut emptying = Vec::new();
            if let Some(problem) = &self.keeping.problem {
                let handovers = self.trackers.get(id).map_or(0, |tracker| tracker.handovers);
                let known = Known::Unavailable(problem.clone());
                partitions.publish(object, Seen { known, holders: Vec::new(), handovers });
            } else if let Some(places) = self.coordinator.whereabouts(id, now) {
                emptying =
                    workload.as_ref().map(|workload| self.emptying(workload, &places)).unwrap_or_default();
                let tracker = self.trackers.entry(id.clone()).or_default();
                let is_scaled_to_zero =
                    workload.as_ref().is_some_and(|workload| is_scaled_to_zero(self.context, workload));
                let sharing = tracker.see(&places, name, Timestamp::now(), is_scaled_to_zero);
                let sharing = Sharing { emptying: emptying.clone(), ..sharing };
                let holders = holders(id, &places, observer);
                let (known, handovers) = (Known::Shared(sharing), tracker.handovers);
                partitions.publish(object, Seen { known, holders, handovers });
            }
            if let Some(workload) = workload {
                let left = emptying.into_iter().map(|pod| (pod.uid, pod.left)).collect();
                self.context.scale_downs.see(workload, object, &left);
            }
        }
        let objects: HashSet<_> = self.consumers.iter().map(|consumer| consumer.object.clone()).collect();
        partitions.retain(&objects, |namespace| self.connection.serves.contains(namespace));
    }

    /// What the pods have that a scale-down empties.
    fn emptying(&self, workload: &Name, places: &[Whereabouts]) -> Vec<Emptying> {
        let retiring = self.context.scale_downs.retiring(workload);
        if retiring.is_empty() {
            return Vec::new();
        }
        let mut pods = self.context.pods.processes(workload);
        pods.retain(|pod| retiring.contains(&pod.uid));
        emptying(pods, places, |id| self.coordinator.observer().record(id)?.uid.as_deref())
    }
}
