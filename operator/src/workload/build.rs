//! In: the desired workload. Out: the objects that it consists of. Pure.

use std::collections::BTreeMap;

use jetwright_crds::{environment::BINDINGS_FILE, labels::WORKLOAD};
use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Service, ServiceAccount, ServiceSpec},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    desired::{Desired, WorkloadSettings},
    template::{Helpers, labels, sets_service_account, template},
};

/// Pods that may be taken away at once, as by a node that is drained.
const MAX_UNAVAILABLE: i32 = 1;

/// The objects of a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// The bindings file.
    pub bindings: ConfigMap,
    /// Who the pods are to Kubernetes; None where the template names an account.
    pub service_account: Option<ServiceAccount>,
    /// The Service, if one is declared.
    pub service: Option<Service>,
    /// How many pods may be taken away at once.
    pub disruption_budget: PodDisruptionBudget,
    /// The pods. JSON, since it holds the user's template whole.
    pub deployment: Value,
}

/// The label that selects a workload's pods.
pub fn selector(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(WORKLOAD.to_owned(), name.to_owned())])
}

/// Makes the objects.
///
/// # Errors
///
/// When the bindings cannot be written as YAML.
pub fn build(
    desired: &Desired,
    settings: &WorkloadSettings,
    helpers: Helpers,
) -> Result<Objects, serde_saphyr::ser::Error> {
    let name = &desired.names.workload;
    let file = serde_saphyr::to_string(&desired.bindings)?;
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, file.as_bytes()).to_string();
    let bindings = ConfigMap {
        metadata: metadata(desired, &desired.names.bindings),
        data: Some(BTreeMap::from([(BINDINGS_FILE.to_owned(), file)])),
        ..ConfigMap::default()
    };
    let service_account = (!sets_service_account(&desired.template)).then(|| ServiceAccount {
        metadata: metadata(desired, name),
        // Programs that only consume have nothing to ask of Kubernetes.
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    });
    let deployment = json!({
        "metadata": metadata(desired, name),
        "spec": {
            "replicas": desired.replicas,
            "selector": { "matchLabels": selector(name) },
            "template": template(desired, settings, helpers, &hash),
        },
    });
    Ok(Objects {
        bindings,
        service_account,
        service: service(desired),
        disruption_budget: disruption_budget(desired),
        deployment,
    })
}

fn service(desired: &Desired) -> Option<Service> {
    let name = &desired.names.workload;
    desired.service_ports.clone().map(|ports| Service {
        metadata: metadata(desired, name),
        spec: Some(ServiceSpec {
            selector: Some(selector(name)),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        status: None,
    })
}

fn disruption_budget(desired: &Desired) -> PodDisruptionBudget {
    let name = &desired.names.workload;
    PodDisruptionBudget {
        metadata: metadata(desired, name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(MAX_UNAVAILABLE)),
            selector: Some(LabelSelector { match_labels: Some(selector(name)), match_expressions: None }),
            // Pods that do not work anyway hold up nobody who drains a node.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            min_available: None,
        }),
        status: None,
    }
}

fn metadata(desired: &Desired, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(desired.namespace.clone()),
        labels: Some(labels(&desired.names.workload)),
        owner_references: Some(vec![desired.owner.clone()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use jetwright_crds::{
        environment::{Binding, Bindings, HANDLER_DEADLINE, Retry},
        names::WorkloadNames,
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    pub fn settings() -> WorkloadSettings {
        WorkloadSettings {
            nats_url: "nats://nats:4222".into(),
            otlp_endpoint: Some("http://jaeger:4318".into()),
        }
    }

    pub fn desired(template: &str) -> Desired {
        let binding = Binding {
            stream: "orders".into(),
            consumer: "fulfilment".into(),
            ack_wait: jetwright_crds::Duration::from_secs(30),
            max_ack_pending: 256,
            retry: Retry::default(),
            handler_deadline: HANDLER_DEADLINE,
            partitions: None,
            ordering: None,
            dead_letters: None,
        };
        Desired {
            names: WorkloadNames::of("fulfilment").unwrap(),
            namespace: "shop".into(),
            owner: OwnerReference { name: "fulfilment".into(), ..OwnerReference::default() },
            replicas: 2,
            template: serde_saphyr::from_str(template).unwrap(),
            admin_port: 9090,
            service_ports: None,
            credentials: None,
            bindings: Bindings { bindings: BTreeMap::from([("fulfilment".into(), binding)]) },
        }
    }

    const MINIMAL: &str = "{spec: {containers: [{name: app, image: shop/order:1}]}}";

    fn built(desired: &Desired) -> Objects {
        build(desired, &settings(), Helpers::Hardened).unwrap()
    }

    /// What every object of the workload has.
    fn common(name: &str) -> Value {
        json!({
            "name": name, "namespace": "shop",
            "labels": {
                "app.kubernetes.io/name": "fulfilment", "app.kubernetes.io/managed-by": "jetwright",
                "jetwright.dev/workload": "fulfilment",
            },
            "ownerReferences": [{"apiVersion": "", "kind": "", "name": "fulfilment", "uid": ""}],
        })
    }

    #[test]
    fn a_minimal_template_becomes_every_object_but_a_service() {
        let Objects { bindings, service_account, service, disruption_budget, deployment } =
            built(&desired(MINIMAL));
        assert_eq!(serde_json::to_value(&bindings).unwrap()["metadata"], common("fulfilment-bindings"));
        assert_eq!(
            serde_json::to_value(service_account).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": common("fulfilment"),
                "automountServiceAccountToken": false,
            })
        );
        assert_eq!(service, None);
        let selector = json!({"matchLabels": {"jetwright.dev/workload": "fulfilment"}});
        assert_eq!(
            serde_json::to_value(disruption_budget).unwrap(),
            json!({
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": common("fulfilment"),
                "spec": {"maxUnavailable": 1, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
            })
        );
        let template = deployment["spec"]["template"].clone();
        assert_eq!(
            deployment,
            json!({
                "metadata": common("fulfilment"),
                "spec": {"replicas": 2, "selector": selector, "template": template},
            })
        );
    }

    #[test]
    fn a_service_leads_to_the_pods() {
        let ports = serde_saphyr::from_str("[{name: http, port: 80, targetPort: 8080}]").unwrap();
        let service = built(&Desired { service_ports: Some(ports), ..desired(MINIMAL) }).service;
        assert_eq!(
            serde_json::to_value(service).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": common("fulfilment"),
                "spec": {
                    "selector": {"jetwright.dev/workload": "fulfilment"},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
                },
            })
        );
    }

    #[test]
    fn pods_that_are_somebody_already_get_no_account() {
        for account in ["serviceAccountName: shop", "serviceAccount: shop"] {
            let template = format!("{{spec: {{{account}, containers: [{{name: app}}]}}}}");
            assert_eq!(built(&desired(&template)).service_account, None, "{account}");
        }
    }

    #[test]
    fn the_bindings_file_reads_back_as_the_runtime_reads_it() {
        let file = built(&desired(MINIMAL)).bindings.data.unwrap().remove("bindings.yaml").unwrap();
        assert_eq!(serde_saphyr::from_str::<Bindings>(&file).unwrap(), desired(MINIMAL).bindings);
    }

    #[test]
    fn pods_roll_out_when_their_bindings_change() {
        let annotations = |desired: &Desired| {
            built(desired).deployment["spec"]["template"]["metadata"]["annotations"].clone()
        };
        let before = desired(MINIMAL);
        let mut after = before.clone();
        after.bindings.bindings.clear();
        assert_eq!(annotations(&before), annotations(&before.clone()));
        assert_ne!(annotations(&before), annotations(&after));
    }
}
