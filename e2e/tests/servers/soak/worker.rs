//! The soak's worker as a process without an operator's pod, for tests that share its partitions with other programs.

use std::{fs, sync::Arc};

use jetwright_crds::{
    Duration,
    environment::{
        Binding, Bindings, HANDLER_DEADLINE, JETWRIGHT_ADMIN_ADDRESS, JETWRIGHT_BINDINGS, JETWRIGHT_POD_NAME,
        JETWRIGHT_POD_NAMESPACE, JETWRIGHT_POD_UID, NATS_URL, Ordering, Retry, StreamPartitions,
    },
};
use jetwright_testing::{Folder, Process, ProcessBuilder, binary};

/// A service on the runtime, as the pod of this number.
pub fn worker(folder: &Arc<Folder>, url: &str, index: usize, partitions: u32) -> ProcessBuilder {
    // Of its own: the one before may still be reading, and would find an empty file.
    let file = folder.path().join(format!("bindings-{index}.yaml"));
    fs::write(&file, serde_saphyr::to_string(&bindings(partitions)).unwrap()).unwrap();
    let name = format!("worker-{index}");
    Process::builder(binary("jetwright-soak-worker"))
        .name(&name)
        .folder(folder)
        .env(NATS_URL, url)
        .env(JETWRIGHT_BINDINGS, &file)
        .env(JETWRIGHT_ADMIN_ADDRESS, "127.0.0.1:0")
        .env(JETWRIGHT_POD_NAMESPACE, "shop")
        .env(JETWRIGHT_POD_NAME, &name)
        .env(JETWRIGHT_POD_UID, uid(index))
}

pub fn uid(index: usize) -> String {
    format!("uid-{index}")
}

fn bindings(count: u32) -> Bindings {
    let binding = Binding {
        stream: "orders".to_owned(),
        consumer: "fulfilment".to_owned(),
        ack_wait: Duration::from_secs(10),
        max_ack_pending: 256,
        retry: Retry::default(),
        handler_deadline: HANDLER_DEADLINE,
        partitions: Some(StreamPartitions { subject: "orders.*.*".to_owned(), key_tokens: vec![2], count }),
        ordering: Some(Ordering { key_tokens: vec![2] }),
        dead_letters: None,
    };
    Bindings { bindings: [("fulfilment".to_owned(), binding)].into() }
}
