//! Which streams carry the mark of which object, by its uid: filled by lists of all streams, and by what is created. An object whose mark
//! is on a stream of another name was renamed after its stream was created; a second stream would leave the events of the first behind.

use std::{collections::BTreeSet, pin::pin};

use futures::TryStreamExt;
use jetwright_crds::marks::UID;
use jetwright_nats::{Api, ApiError};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    asset::{Asset as _, Stream},
    history::History,
    info::StreamInfo,
    listed::Listed,
    ownership::{Owner, Ownership},
    pages::pages,
};
use crate::{hash::hash_of, outcome::CreationTime as _};

/// Names of streams, by the hash of the uid of the object whose mark they carry: there is one for each stream of the account, and whose it is
/// is asked for anyway.
#[derive(Default)]
pub struct Names(BTreeSet<(u64, Box<str>)>);

impl Names {
    pub fn add(&mut self, info: &StreamInfo) {
        let metadata = info.config.metadata();
        if let (Some(uid), Some(name)) = (metadata.get(UID), info.name()) {
            self.0.insert((hash_of(uid), name.into()));
        }
    }

    fn of(&self, uid: &str) -> Vec<String> {
        let uid = hash_of(&uid);
        let names = self.0.range((uid, "".into())..).take_while(|(other, _)| *other == uid);
        names.map(|(_, name)| name.to_string()).collect()
    }
}

/// The index; None until all streams were listed once.
#[derive(Default)]
pub struct Marks {
    names: Mutex<Option<Names>>,
    /// Held while they are listed.
    listing: AsyncMutex<()>,
}

impl Marks {
    /// Takes note of a stream.
    pub fn observe(&self, info: &StreamInfo) {
        if let Some(names) = self.names.lock().as_mut() {
            names.add(info);
        }
    }

    /// Takes over what a list of all streams has.
    pub fn replace(&self, names: Names) {
        *self.names.lock() = Some(names);
    }

    /// Another stream than this one that is the owner's, by its mark as JetStream has it now.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer.
    pub async fn elsewhere(&self, api: &Api, owner: &Owner, name: &str) -> Result<Option<String>, ApiError> {
        self.list_once(api).await?;
        let names = self.names.lock().as_ref().map(|names| names.of(&owner.uid));
        for other in names.unwrap_or_default().into_iter().filter(|other| other != name) {
            let info = Stream::info(api, &other).await?;
            let is_own = info.is_some_and(|info| {
                let ownership = owner.ownership(&info.config, info.created(), &History::default());
                matches!(ownership, Ownership::Ours(Some(_)))
            });
            if is_own {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    async fn list_once(&self, api: &Api) -> Result<(), ApiError> {
        let _one = self.listing.lock().await;
        if self.names.lock().is_some() {
            return Ok(());
        }
        let mut names = Names::default();
        let mut pages = pin!(pages(|offset| api.list_streams(offset), Listed::name));
        while let Some(page) = pages.try_next().await? {
            page.items.iter().filter_map(Listed::read).for_each(|info| names.add(&info));
        }
        self.replace(names);
        Ok(())
    }
}
