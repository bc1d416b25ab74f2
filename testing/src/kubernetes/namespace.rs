//! A namespace for a test.

use super::control_plane::{ControlPlane, client_of};
use crate::folder::is_to_keep;
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Namespace as KubernetesNamespace;
use kube::api::{DeleteParams, DynamicObject, ListParams, ObjectMeta, PostParams};
use kube::core::NamespaceResourceScope;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, Client, Resource};
use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// How long a test that is over waits for its namespace to be deleted, or for its objects to be kept.
const FAREWELL: Duration = Duration::from_secs(10);

/// A namespace of a control plane, deleted on drop as far as that goes: it stays `Terminating`, with what is in it, but
/// nothing new can be made there. If the test fails, its objects and the control plane's logs are kept.
pub struct Namespace<'a> {
    name: String,
    control_plane: &'a ControlPlane,
    client: Client,
}

impl fmt::Debug for Namespace<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Namespace").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'a> Namespace<'a> {
    pub(crate) async fn create(control_plane: &'a ControlPlane, prefix: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let client = control_plane.try_client().await?;
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let namespace = KubernetesNamespace { metadata, ..KubernetesNamespace::default() };
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(Self { name, control_plane, client })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A client for the running test, whose default namespace is not this one.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The objects of a kind in this namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client(), &self.name)
    }

    /// The control plane that it is in.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        self.control_plane
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let folder = self.control_plane.folder();
        let test = thread::current().name().map(ToOwned::to_owned);
        let kept = is_to_keep().then(|| folder.keep(test.as_deref()));
        let (name, kubeconfig) = (&self.name, self.control_plane.kubeconfig());
        // The test's own runtime cannot be waited for here, and may be ending.
        let farewell = thread::scope(|scope| {
            let farewell = || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    tokio::time::timeout(FAREWELL, farewell(kubeconfig, name, kept)).await?
                })
            };
            scope.spawn(farewell).join()
        });
        if let Ok(Err(error)) = farewell {
            eprintln!("--- the namespace {name} could not be deleted, or its objects not be kept: {error:#}");
        }
    }
}

async fn farewell(kubeconfig: &Path, name: &str, kept: Option<Result<PathBuf>>) -> Result<()> {
    let client = client_of(kubeconfig).await?;
    if let Some(kept) = kept {
        let path = kept?.join(format!("{name}.yaml"));
        fs::write(&path, objects(&client, name).await?)?;
        eprintln!("--- the objects of namespace {name} are kept in {}", path.display());
    }
    Api::<KubernetesNamespace>::all(client).delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// All objects of a namespace that can be listed, events included, as YAML.
async fn objects(client: &Client, namespace: &str) -> Result<String> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    let mut text = String::new();
    for (resource, capabilities) in
        discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources)
    {
        if capabilities.scope != Scope::Namespaced || !capabilities.supports_operation(verbs::LIST) {
            continue;
        }
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
        for mut object in api.list(&ListParams::default()).await.context(resource.plural.clone())? {
            object.metadata.managed_fields = None;
            object.types = Some(kube::core::TypeMeta {
                api_version: resource.api_version.clone(),
                kind: resource.kind.clone(),
            });
            write!(text, "---\n{}", serde_saphyr::to_string(&object)?)?;
        }
    }
    Ok(text)
}
