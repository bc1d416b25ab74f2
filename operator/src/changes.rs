//! Names of objects about which something was found out beside their reconciles, for these to be triggered.

use std::collections::BTreeSet;

use futures::{Stream, stream};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::kubernetes::stores::Name;

/// Objects that were not triggered yet, each once.
#[derive(Debug, Default)]
pub struct Changes {
    names: Mutex<BTreeSet<Name>>,
    sender: watch::Sender<()>,
}

impl Changes {
    /// Triggers an object.
    pub fn add(&self, name: Name) {
        self.names.lock().insert(name);
        self.sender.send_replace(());
    }

    /// Names of the objects to reconcile, of those in the namespaces for which `is_here` holds.
    pub fn of<'a>(
        &'a self,
        is_here: impl Fn(&str) -> bool + Clone + Send + 'a,
    ) -> impl Stream<Item = Vec<Name>> + Send + 'a {
        stream::unfold(self.sender.subscribe(), move |mut receiver| {
            let is_here = is_here.clone();
            async move {
                receiver.changed().await.ok()?;
                let mut names = self.names.lock();
                let (here, elsewhere) =
                    std::mem::take(&mut *names).into_iter().partition::<Vec<_>, _>(|name| is_here(&name.0));
                names.extend(elsewhere);
                drop(names);
                Some((here, receiver))
            }
        })
    }
}
