//! In: the EventStream that is to be, and what there is in its place. Out: the EventStream as Kubernetes has it then. Writes to
//! Kubernetes where something differs, and decides nothing.

use jetwright_crds::{EventConsumer, EventStream};
use kube::ResourceExt;

use crate::{
    context::Context,
    kubernetes::owned::{Error, Owner},
};

/// Applies the EventStream. It gets no owner: dead letters outlive whoever wrote them.
pub async fn apply(
    kept: &EventStream,
    found: Option<EventStream>,
    object: &EventConsumer,
    context: &Context,
) -> Result<EventStream, Error> {
    let owner = Owner::new(&context.client, &context.applied, object);
    owner.apply_over(&kept.name_any(), kept, found).await
}
