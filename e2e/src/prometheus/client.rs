//! What Prometheus answers (its HTTP API, v1).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use reqwest::Url;
use serde_json::Value;

/// Asks a Prometheus.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
}

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// A series, and its value now.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its labels, with `__name__` where it has one.
    pub labels: Labels,
    /// Its value.
    pub value: f64,
}

/// Something that is scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its labels, with `job`.
    pub labels: Labels,
    /// Why it could not be scraped last; empty where it could.
    pub error: String,
    /// Whether it was scraped, and well.
    pub is_up: bool,
}

impl Client {
    /// For the Prometheus at this address.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into() }
    }

    /// URL of a page for a browser, `alerts` or `graph`. Debian's package has the pages of versions before 2.22, at another path.
    pub async fn page(&self, name: &str) -> String {
        let classic = format!("{}/classic/{name}", self.url);
        let answer = reqwest::get(&classic).await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            classic
        } else {
            format!("{}/{name}", self.url)
        }
    }

    /// The series that a query answers with now.
    ///
    /// # Errors
    ///
    /// When there is no answer, or Prometheus refuses the query.
    pub async fn query(&self, query: &str) -> Result<Vec<Sample>> {
        let data = self.ask("query", &[("query", query)]).await?;
        let result = data["result"].as_array().with_context(|| format!("no vector: {data}"))?;
        let sample = |series: &Value| {
            let value = series["value"][1].as_str().and_then(|value| value.parse().ok());
            let value = value.with_context(|| series.to_string())?;
            anyhow::Ok(Sample { labels: labels(&series["metric"]), value })
        };
        result.iter().map(sample).collect()
    }

    /// Labels of the alerts that fire now.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn firing(&self) -> Result<Vec<Labels>> {
        let found = self.query(r#"ALERTS{alertstate="firing"}"#).await?;
        Ok(found.into_iter().map(|sample| sample.labels).collect())
    }

    /// Labels of the exemplars that the series of a selector have had in the last hour.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn exemplars(&self, selector: &str) -> Result<Vec<Labels>> {
        let now = self.query("vector(time())").await?.first().context("no time")?.value;
        let (start, end) = (format!("{:.0}", now - 3600.0), format!("{:.0}", now + 60.0));
        let data =
            self.ask("query_exemplars", &[("query", selector), ("start", &start), ("end", &end)]).await?;
        let series = data.as_array().into_iter().flatten();
        let exemplars = series.flat_map(|series| series["exemplars"].as_array().into_iter().flatten());
        Ok(exemplars.map(|exemplar| labels(&exemplar["labels"])).collect())
    }

    /// What is scraped.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn targets(&self) -> Result<Vec<Target>> {
        let data = self.ask("targets", &[("state", "active")]).await?;
        let target = |target: &Value| Target {
            labels: labels(&target["labels"]),
            error: target["lastError"].as_str().unwrap_or_default().to_owned(),
            is_up: target["health"] == "up",
        };
        Ok(data["activeTargets"].as_array().into_iter().flatten().map(target).collect())
    }

    /// Rules that could not be evaluated last, with why.
    ///
    /// # Errors
    ///
    /// When there is no answer, or it has no rules.
    pub async fn failed_rules(&self) -> Result<Vec<String>> {
        let data = self.ask("rules", &[]).await?;
        let groups = data["groups"].as_array().into_iter().flatten();
        let rules: Vec<_> =
            groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
        ensure!(!rules.is_empty(), "no rules are loaded");
        // A rule that was not evaluated yet is "unknown".
        let failed = rules.iter().filter(|rule| rule["health"] == "err");
        Ok(failed.map(|rule| format!("{}: {}", rule["name"], rule["lastError"])).collect())
    }

    async fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let url = Url::parse_with_params(&format!("{}/api/v1/{what}", self.url), parameters)?;
        let text = reqwest::get(url).await?.text().await?;
        let mut answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(answer["status"] == "success", "Prometheus refuses {parameters:?}: {text}");
        Ok(answer["data"].take())
    }
}

fn labels(object: &Value) -> Labels {
    let labels = object.as_object().into_iter().flatten();
    labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}
