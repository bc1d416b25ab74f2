//! How many replicated streams and consumers each server keeps: each is a Raft group of its own, which costs the server also while nothing
//! happens. In: listed streams. Out: a count by server. Pure.

use std::{collections::BTreeMap, sync::Arc};

use super::{answer::ListedStream, sample::Intern};

/// The count by server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicatedAssets(BTreeMap<Arc<str>, u64>);

impl ReplicatedAssets {
    /// Counts a stream and its consumers, which are kept by the same servers. A consumer that is to have fewer copies than its stream counts
    /// on all of them: the list of streams does not tell which.
    pub fn count(&mut self, stream: &ListedStream, names: &mut Intern) {
        for server in stream.servers() {
            *self.0.entry(names.get(server)).or_default() += 1 + stream.consumers();
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(server, count)| (server.as_ref(), *count))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn listed(replicas: u8, cluster: &Value) -> ListedStream {
        let config = json!({"name": "a", "num_replicas": replicas});
        let state = json!({"messages": 0, "bytes": 0, "first_seq": 1, "last_seq": 0, "consumer_count": 2});
        serde_json::from_value(json!({"config": config, "state": state, "cluster": cluster})).unwrap()
    }

    #[test]
    fn replicated_streams_count_with_their_consumers_on_each_of_their_servers_and_others_do_not() {
        let replicas = |names: [&str; 2]| names.map(|name| json!({"name": name, "current": true}));
        let (mut assets, mut names) = (ReplicatedAssets::default(), Intern::default());
        let (three, led) = (replicas(["n2", "n3"]), replicas(["n3", "n4"]));
        assets.count(&listed(3, &json!({"name": "c", "leader": "n1", "replicas": three})), &mut names);
        // While nobody leads, JetStream names no leader.
        assets.count(&listed(3, &json!({"name": "c", "replicas": led})), &mut names);
        assets.count(&listed(1, &json!({"name": "c", "leader": "n1"})), &mut names);
        assets.count(&listed(1, &json!(null)), &mut names);
        let counted: Vec<_> = assets.iter().collect();
        assert_eq!(counted, [("n1", 3), ("n2", 3), ("n3", 6), ("n4", 3)]);
    }
}
