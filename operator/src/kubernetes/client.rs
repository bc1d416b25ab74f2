//! The client of Kubernetes: each of its requests is counted, and is a span of the reconcile that sends it. Sends nothing by itself.

use std::{
    fmt::Display,
    pin::Pin,
    task::{Context, Poll},
};

use futures::future::Either;
use http::{Method, Request, Response, StatusCode};
use jetwright_process::telemetry::WorkSpan;
use kube::client::{Body, Client, ClientBuilder};
use opentelemetry::{
    KeyValue,
    trace::{SpanBuilder, SpanKind},
};
use tower::{Service, layer::layer_fn};

use crate::metrics::Metrics;

/// A client with the configuration of the environment: a kubeconfig, or the pod's ServiceAccount.
///
/// # Errors
///
/// When there is neither.
pub async fn client(metrics: &Metrics) -> anyhow::Result<Client> {
    let metrics = metrics.clone();
    let observe = layer_fn(move |inner| Observed { inner, metrics: metrics.clone() });
    let config = kube::Config::infer().await?;
    Ok(ClientBuilder::try_from(config)?.with_layer(&observe).build())
}

/// Passes requests on.
#[derive(Clone)]
struct Observed<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Display,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let verb = verb(&request);
        self.metrics.kubernetes_request(verb);
        // The client calls this on its own task, but within the span of the caller.
        let span = WorkSpan::of_request(|| named(verb, &request));
        let answer = self.inner.call(request);
        let Some(span) = span else { return Either::Left(answer) };
        Either::Right(Box::pin(async move {
            let answer = answer.await;
            end(&span, answer.as_ref().map(Response::status));
            answer
        }))
    }
}

/// What a request does, in Kubernetes' words; lists are `get`.
fn verb<T>(request: &Request<T>) -> &'static str {
    let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    match *request.method() {
        Method::GET if watches => "watch",
        Method::GET => "get",
        Method::POST => "create",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    }
}

/// The span of a request. Its name has no object's name in it.
fn named<T>(verb: &'static str, request: &Request<T>) -> SpanBuilder {
    let Target { resource, namespace, name } = Target::of(request.uri().path());
    let mut attributes = vec![
        KeyValue::new("http.request.method", request.method().as_str().to_owned()),
        KeyValue::new("resource", resource.clone()),
    ];
    let of_object = [("k8s.namespace.name", namespace), ("name", name)];
    attributes
        .extend(of_object.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key, value?.to_owned()))));
    SpanBuilder::from_name(format!("{verb} {resource}"))
        .with_kind(SpanKind::Client)
        .with_attributes(attributes)
}

/// Says how a request ended. That something does not exist is an answer, and no failure.
fn end(span: &WorkSpan, answer: Result<StatusCode, &impl Display>) {
    let outcome = match answer {
        Ok(StatusCode::NOT_FOUND) => "not_found",
        Ok(StatusCode::CONFLICT) => "conflict",
        Ok(status) if status.is_client_error() || status.is_server_error() => "refused",
        Ok(_) => "ok",
        Err(_) => "unanswered",
    };
    span.set_attribute(KeyValue::new("outcome", outcome));
    match answer {
        Ok(status) => {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
            if !["ok", "not_found"].contains(&outcome) {
                span.fail(outcome, &status);
            }
        }
        Err(error) => span.fail(outcome, error),
    }
}

/// What a path of Kubernetes' API names.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    /// With the subresource, as in `eventstreams/status`.
    resource: String,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Self {
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        let within = match parts.as_slice() {
            ["api", _, within @ ..] | ["apis", _, _, within @ ..] => within,
            _ => &[],
        };
        let (namespace, within) = match within {
            ["namespaces", namespace, within @ ..] if !within.is_empty() => (Some(*namespace), within),
            _ => (None, within),
        };
        match within {
            // What the API has, as the version.
            [] => Self {
                resource: parts.first().copied().unwrap_or_default().to_owned(),
                namespace,
                name: None,
            },
            [resource] => Self { resource: (*resource).to_owned(), namespace, name: None },
            [resource, name] => Self { resource: (*resource).to_owned(), namespace, name: Some(name) },
            [resource, name, subresource, ..] => {
                Self { resource: format!("{resource}/{subresource}"), namespace, name: Some(name) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_names_is_the_resource_and_the_object() {
        for (path, resource, namespace, name) in [
            ("/version", "version", None, None),
            ("/api/v1/namespaces/kube-system", "namespaces", None, Some("kube-system")),
            ("/api/v1/namespaces/shop/pods", "pods", Some("shop"), None),
            ("/apis/jetwright.dev/v1alpha1/eventstreams", "eventstreams", None, None),
            (
                "/apis/jetwright.dev/v1alpha1/namespaces/shop/eventstreams/orders/status",
                "eventstreams/status",
                Some("shop"),
                Some("orders"),
            ),
            ("/apis/apps/v1/namespaces/shop/deployments/orders", "deployments", Some("shop"), Some("orders")),
        ] {
            let expected = Target { resource: resource.to_owned(), namespace, name };
            assert_eq!(Target::of(path), expected, "{path}");
        }
    }

    #[test]
    fn what_a_request_does_is_told_by_its_method_and_whether_it_watches() {
        let of = |method: Method, query: &str| {
            verb(&Request::builder().method(method).uri(format!("/api/v1/pods{query}")).body(()).unwrap())
        };
        assert_eq!(of(Method::GET, "?limit=500"), "get");
        assert_eq!(of(Method::GET, "?watch=true&limit=500"), "watch");
        assert_eq!(of(Method::PATCH, ""), "patch");
        assert_eq!(of(Method::PUT, ""), "other");
    }
}
