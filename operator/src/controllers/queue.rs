//! A controller's queue: names of objects that were woken, until their reconcile begins. How many wait is a metric.
//!
//! kube's applier takes the names out at once and holds them itself while all its reconciles run, so what waits is counted here.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{kubernetes::stores::Name, metrics::Metrics};

/// Wake-ups that wait for a controller to take them over.
const MAX_QUEUED: usize = 1024;

/// The end of a queue that wakes objects.
pub struct Queue {
    names: mpsc::Sender<Name>,
    waiting: Waiting,
}

/// The objects that were woken and whose reconcile did not begin yet. Clones share them.
#[derive(Clone)]
pub struct Waiting {
    names: Arc<Mutex<HashSet<Name>>>,
    controller: &'static str,
    metrics: Metrics,
}

/// A queue of a controller: both of its ends, and what waits in it.
pub fn queue(controller: &'static str, metrics: &Metrics) -> (Queue, mpsc::Receiver<Name>, Waiting) {
    let (names, queued) = mpsc::channel(MAX_QUEUED);
    let waiting = Waiting { names: Arc::default(), controller, metrics: metrics.clone() };
    waiting.metrics.queue_changed(controller, 0);
    (Queue { names, waiting: waiting.clone() }, queued, waiting)
}

impl Queue {
    pub async fn send(&self, name: Name) {
        if self.waiting.names.lock().insert(name.clone()) {
            self.waiting.metrics.queue_changed(self.waiting.controller, 1);
        }
        // Nobody receives any more when the controller has stopped.
        let _ = self.names.send(name).await;
    }
}

impl Waiting {
    /// The reconcile of an object begins, or the object is gone.
    pub fn ended(&self, name: &Name) {
        if self.names.lock().remove(name) {
            self.metrics.queue_changed(self.controller, -1);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[tokio::test]
    async fn an_object_that_is_woken_twice_waits_once_until_its_reconcile_begins() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (queue, _queued, waiting) = queue("stream", &metrics);
        let depth = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let start = "jetwright_operator_queue_depth{controller=\"stream\"} ";
            text.lines().find_map(|line| line.strip_prefix(start)).map(str::to_owned)
        };
        let name = |name: &str| ("shop".to_owned(), name.to_owned());
        assert_eq!(depth().as_deref(), Some("0"));
        for woken in ["a", "b", "a"] {
            queue.send(name(woken)).await;
        }
        assert_eq!(depth().as_deref(), Some("2"));
        for begun in ["a", "a", "c"] {
            waiting.ended(&name(begun));
        }
        assert_eq!(depth().as_deref(), Some("1"));
    }
}
