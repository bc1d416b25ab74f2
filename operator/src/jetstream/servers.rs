//! Which servers are away, by what the leaders of streams hear from them. In: what leaders answered. Out: the streams that have a copy on a
//! server that went away or came back.
//!
//! NATS gives up a killed server only after minutes, and no advisory says that a follower is silent. One answer about one stream holds for all
//! streams that have a copy on the same server.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    asset::Stream,
    cache::{Cache, Cached as _, Change},
    info::{ClusterInfo, StreamInfo},
};

/// Whether leaders heard from servers lately.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard(HashMap<String, bool>);

impl Heard {
    /// Records what the leader of a stream said. One leader that hears from a server is enough.
    pub fn add(&mut self, info: &StreamInfo) {
        let Some(ClusterInfo { leader: Some(leader), replicas, .. }) = &info.cluster else { return };
        self.0.insert(leader.clone(), true);
        // A leader knows nothing of a peer that it never heard, such as one that is just getting its copy.
        for peer in replicas.iter().filter(|peer| peer.was_heard() || peer.offline) {
            *self.0.entry(peer.name.clone()).or_default() |= !peer.is_away();
        }
    }

    /// Updates which servers are missed, and returns those that changed. A server that no answer names stays as it is.
    fn apply(self, missed: &mut BTreeSet<String>) -> BTreeSet<String> {
        let mut changes = |(name, is_there): &(String, bool)| {
            if *is_there { missed.remove(name) } else { missed.insert(name.clone()) }
        };
        self.0.into_iter().filter_map(|heard| changes(&heard).then_some(heard.0)).collect()
    }
}

impl Cache {
    /// Records which servers leaders hear from, and notifies the streams whose number of copies changes by that.
    pub fn heard(&self, heard: Heard) {
        let changed = heard.apply(&mut self.missed().lock());
        if changed.is_empty() {
            return;
        }
        let (missed, streams) = (self.missed().lock().clone(), self.with_copies_on(&changed));
        tracing::info!(
            ?changed,
            ?missed,
            streams = streams.len(),
            "servers that keep copies went or came back"
        );
        self.notify(Change::Availability(streams));
    }

    /// Marks the servers that are missed in the description of a stream.
    pub fn mark_missed(&self, info: &mut StreamInfo) {
        let missed = self.missed().lock();
        for peer in info.cluster.iter_mut().flat_map(|cluster| &mut cluster.replicas) {
            peer.is_missed = missed.contains(&peer.name);
        }
    }

    /// The streams that are known to have a copy on any of these servers. A locked entry, which is being written, counts as one.
    fn with_copies_on(&self, servers: &BTreeSet<String>) -> Arc<[String]> {
        let has_copy = |info: &StreamInfo| {
            let mut peers = info.cluster.iter().flat_map(|cluster| &cluster.replicas);
            peers.any(|peer| servers.contains(&peer.name))
        };
        let entries = Stream::entries(self).all().into_iter();
        let with_copy = entries.filter(|(_, entry)| match entry.try_lock() {
            Ok(slot) => slot.present().is_some_and(|info| has_copy(&info)),
            Err(_) => true,
        });
        with_copy.map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn info(leader: &str, peers: &[(&str, u64)]) -> StreamInfo {
        let peers: Vec<_> =
            peers.iter().map(|(name, active)| json!({"name": name, "active": active})).collect();
        serde_json::from_value(json!({
            "config": {"name": "orders", "num_replicas": 3}, "created": "2026-11-21T10:00:00Z",
            "state": {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0},
            "cluster": {"name": "east", "leader": leader, "replicas": peers},
        }))
        .unwrap()
    }

    /// The servers that change by what these say, and those that are missed then.
    fn after(missed: &mut BTreeSet<String>, infos: &[StreamInfo]) -> (Vec<String>, Vec<String>) {
        let mut heard = Heard::default();
        for info in infos {
            heard.add(info);
        }
        let changed = heard.apply(missed);
        (changed.into_iter().collect(), missed.iter().cloned().collect())
    }

    #[test]
    fn a_server_is_missed_while_no_leader_hears_from_it() {
        let mut missed = BTreeSet::new();
        let n3 = || vec!["n3".to_owned()];
        let (well, silent) = ([("n2", SECOND), ("n3", SECOND)], [("n2", SECOND), ("n3", 9 * SECOND)]);
        assert_eq!(after(&mut missed, &[info("n1", &well)]), (vec![], vec![]));
        assert_eq!(after(&mut missed, &[info("n1", &silent)]), (n3(), n3()));
        assert_eq!(after(&mut missed, &[info("n1", &silent)]), (vec![], n3()), "nothing changed");
        assert_eq!(after(&mut missed, &[]), (vec![], n3()), "nothing was heard");
        assert_eq!(after(&mut missed, &[info("n2", &[("n3", 0)])]), (vec![], n3()), "never heard");
        assert_eq!(after(&mut missed, &[info("n1", &silent), info("n3", &[("n1", SECOND)])]), (n3(), vec![]));
    }

    #[test]
    fn one_leader_that_hears_from_a_server_is_enough() {
        let mut missed = BTreeSet::new();
        let infos = [info("n1", &[("n3", 9 * SECOND)]), info("n2", &[("n3", SECOND)])];
        assert_eq!(after(&mut missed, &infos), (vec![], vec![]));
    }
}
