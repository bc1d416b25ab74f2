//! Checks that nothing is left whose finalizer only a running operator removes: without it, such objects could not be deleted, and neither
//! their namespaces nor their definitions. Reads from Kubernetes.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use jetwright_crds::{EventConsumer, EventStream, labels::FINALIZER};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{client, error::Error, say};
use crate::{
    kubernetes::{finalizer, list},
    namespaces::Namespaces,
};

/// Objects that are named; the others are counted.
const NAMED: usize = 20;
/// How long it may take.
const TIMEOUT: Duration = Duration::from_mins(1);

/// An object that has the finalizer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    namespace: String,
    kind: String,
    name: String,
}

/// Looks for objects with the finalizer in these namespaces, and prints them with what to do.
///
/// # Errors
///
/// When there are any, or Kubernetes does not tell.
pub async fn run(namespaces: &Namespaces, stop: &CancellationToken) -> Result<(), Error> {
    let client = client().await?;
    let found = tokio::select! {
        () = stop.cancelled() => return Err(Error::Interrupted),
        found = timeout(TIMEOUT, find(&client, namespaces)) => found.map_err(|_| Error::Unanswered)??,
    };
    report(&found).into_iter().for_each(say);
    if found.is_empty() { Ok(()) } else { Err(Error::Held(found.len())) }
}

/// Every object that has the finalizer, sorted.
async fn find(client: &Client, namespaces: &Namespaces) -> Result<Vec<Held>, Error> {
    let mut found = Vec::new();
    for scope in namespaces.scopes() {
        found.extend(find_kind::<EventConsumer>(client, scope.as_deref()).await?);
        found.extend(find_kind::<EventStream>(client, scope.as_deref()).await?);
    }
    found.sort();
    Ok(found)
}

/// Objects of a kind that have the finalizer; None where there is no such kind.
async fn find_kind<K>(client: &Client, namespace: Option<&str>) -> Result<Vec<Held>, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = match namespace {
        Some(name) => Api::namespaced(client.clone(), name),
        None => Api::all(client.clone()),
    };
    let kind = K::kind(&()).into_owned();
    let objects = match list::metadata(&api).await {
        Ok(objects) => objects,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(source) => {
            let scope =
                namespace.map_or_else(|| "all namespaces".to_owned(), |name| format!("namespace {name}"));
            return Err(Error::List { kind, scope, source });
        }
    };
    let held = objects.iter().filter(|object| finalizer::is_set(*object));
    let held = held.map(|object| Held {
        namespace: object.namespace().unwrap_or_default(),
        kind: kind.clone(),
        name: object.name_any(),
    });
    Ok(held.collect())
}

/// What to print of what was found. Pure.
fn report(found: &[Held]) -> Vec<String> {
    if found.is_empty() {
        return vec![format!("nothing has the finalizer {FINALIZER}: the operator can go")];
    }
    let named = &found[..found.len().min(NAMED)];
    let mut lines = vec![format!(
        "{} objects have the finalizer {FINALIZER}, which a running operator removes:",
        found.len()
    )];
    lines.extend(named.iter().map(|Held { namespace, kind, name }| format!("  {kind} {namespace}/{name}")));
    if found.len() > NAMED {
        lines.push(format!(
            "  and {} more, which the next run names when these are gone",
            found.len() - NAMED
        ));
    }
    let mut ways = |what: &str, verb: &str, options: &str| {
        lines.push(what.to_owned());
        lines.extend(by_namespace(named).iter().map(|(namespace, objects)| {
            format!("  kubectl -n {namespace} {verb} {}{options}", objects.join(" "))
        }));
    };
    ways(
        "Delete them while the operator still runs; it deletes their streams and consumers in JetStream, with all that is in them:",
        "delete",
        "",
    );
    ways(
        "Or keep what is in JetStream; the operator, while it still runs, then takes the finalizer away:",
        "patch",
        r#" --type=merge -p '{"spec":{"deletionPolicy":"Retain"}}'"#,
    );
    ways(
        "Or, where no operator runs any more, take the finalizer away yourself, which keeps what is in JetStream too:",
        "patch",
        r#" --type=merge -p '{"metadata":{"finalizers":null}}'"#,
    );
    lines
}

/// The objects as kubectl takes them, those of a namespace together.
fn by_namespace(named: &[Held]) -> BTreeMap<&str, Vec<String>> {
    let mut namespaces = BTreeMap::<_, Vec<_>>::new();
    for Held { namespace, kind, name } in named {
        namespaces.entry(namespace.as_str()).or_default().push(format!("{}/{name}", kind.to_lowercase()));
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(kind: &str, namespace: &str, name: &str) -> Held {
        Held { namespace: namespace.into(), kind: kind.into(), name: name.into() }
    }

    #[test]
    fn every_object_is_named_with_the_lines_that_let_it_go() {
        let found = [
            held("EventConsumer", "shop", "mails"),
            held("EventStream", "shop", "orders"),
            held("EventStream", "x", "y"),
        ];
        assert_eq!(
            report(&found).join("\n"),
            r#"3 objects have the finalizer jetwright.dev/cleanup, which a running operator removes:
  EventConsumer shop/mails
  EventStream shop/orders
  EventStream x/y
Delete them while the operator still runs; it deletes their streams and consumers in JetStream, with all that is in them:
  kubectl -n shop delete eventconsumer/mails eventstream/orders
  kubectl -n x delete eventstream/y
Or keep what is in JetStream; the operator, while it still runs, then takes the finalizer away:
  kubectl -n shop patch eventconsumer/mails eventstream/orders --type=merge -p '{"spec":{"deletionPolicy":"Retain"}}'
  kubectl -n x patch eventstream/y --type=merge -p '{"spec":{"deletionPolicy":"Retain"}}'
Or, where no operator runs any more, take the finalizer away yourself, which keeps what is in JetStream too:
  kubectl -n shop patch eventconsumer/mails eventstream/orders --type=merge -p '{"metadata":{"finalizers":null}}'
  kubectl -n x patch eventstream/y --type=merge -p '{"metadata":{"finalizers":null}}'"#
        );
    }

    #[test]
    fn many_objects_are_named_in_part_and_counted() {
        let found: Vec<_> =
            (0..23).map(|number| held("EventStream", "shop", &format!("s{number:02}"))).collect();
        let lines = report(&found);
        assert_eq!(
            lines[0],
            "23 objects have the finalizer jetwright.dev/cleanup, which a running operator removes:"
        );
        assert_eq!(lines[21], "  and 3 more, which the next run names when these are gone");
        assert!(lines.iter().all(|line| !line.contains("s20")), "{lines:?}");
    }

    #[test]
    fn nothing_to_let_go_is_said_too() {
        assert_eq!(report(&[]), ["nothing has the finalizer jetwright.dev/cleanup: the operator can go"]);
    }
}
