//! The manifests in `configs/kubernetes` fit the program: keys, ports, probes, times and rights. `integration-tests/peers/kubernetes.py` checks
//! them against the schemas of Kubernetes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use figment::providers::{Format, Yaml};
use runtime::config::{Config, Role, Surroundings};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes")
}

/// The objects of an overlay's files, without those of the base.
fn objects(overlay: &str) -> Result<Vec<Value>> {
    let folder = folder().join("overlays").join(overlay);
    let mut objects = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let text = fs::read_to_string(entry?.path())?;
        for document in text.split("\n---\n") {
            objects.push(Yaml::from_str::<Value>(document).with_context(|| document.to_owned())?);
        }
    }
    Ok(objects)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// The Pod templates of an overlay, with the names of their workloads.
fn pods(overlay: &str) -> Result<Vec<(String, Value)>> {
    let objects = objects(overlay)?;
    let workloads = objects.iter().filter(|object| object["spec"]["template"].is_object());
    workloads
        .map(|object| Ok((text(&object["metadata"]["name"])?, object["spec"]["template"].clone())))
        .collect()
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("{value} is no text"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The variables that every container gets from the ConfigMap of the base.
fn common_variables() -> Result<BTreeMap<String, String>> {
    let lines = fs::read_to_string(folder().join("base/baton.env"))?;
    let pair = |line: &str| {
        let (name, value) = line.split_once('=').with_context(|| format!("{line:?} is no variable"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    lines.lines().map(pair).collect()
}

/// The configuration of a container as its process reads it.
fn config(container: &Value) -> Result<Config> {
    let mut variables = BTreeMap::new();
    for source in list(&container["envFrom"]) {
        ensure!(source["configMapRef"]["name"] == "baton", "{source}");
        variables.extend(common_variables()?);
    }
    for variable in list(&container["env"]) {
        let from = &variable["valueFrom"];
        let value = match &variable["value"] {
            Value::String(value) => value.replace("$(POD_IP)", "10.0.0.1"),
            _ if from["secretKeyRef"]["name"] == "baton" => "secret".to_owned(),
            _ if from["fieldRef"]["fieldPath"] == "status.podIP" => "10.0.0.1".to_owned(),
            _ => anyhow::bail!("{variable} has no known value"),
        };
        let name = text(&variable["name"])?;
        if name == "BATON_ENGINE__DEVICE" {
            // The build of this test may refuse it.
            ensure!(value == "cuda", "{value}");
            continue;
        }
        variables.insert(name, value);
    }
    let [name, role] = list(&container["args"]) else {
        anyhow::bail!("{} is not --role ROLE", container["args"])
    };
    ensure!(name == "--role", "{name}");
    let roles = [Role::Node, Role::Proxy, Role::Receiver, Role::Sender, Role::Local];
    let role =
        roles.into_iter().find(|known| *role == known.to_string()).with_context(|| format!("{role}"))?;
    let pairs = variables.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::load(role, None, &[], Surroundings::from_variables(pairs, 4))
        .map_err(|errors| anyhow::anyhow!("{errors}"))
}

/// The number of the port that a probe asks.
fn probed_port(container: &Value, probe: &str) -> Result<u64> {
    let name = &container[probe]["httpGet"]["port"];
    let port = list(&container["ports"]).iter().find(|port| port["name"] == *name);
    port.and_then(|port| port["containerPort"].as_u64()).with_context(|| format!("{probe} asks no port"))
}

const OVERLAYS: [&str; 2] = ["nodes", "prefill-decode-pod"];

#[test]
fn every_container_starts_with_a_valid_configuration_and_has_probes() -> Result<()> {
    let mut roles = Vec::new();
    for overlay in OVERLAYS {
        for (name, pod) in pods(overlay)? {
            for container in list(&pod["spec"]["containers"]) {
                let config = config(container).with_context(|| format!("{name}: {}", container["name"]))?;
                let role = config.role;
                roles.push(role);
                // The kubelet and clients reach the process by the address of the Pod.
                let (host, port) = match role {
                    Role::Proxy | Role::Local => (&config.frontend.host, config.frontend.port),
                    _ => (&config.http.host, config.http.port),
                };
                assert_eq!(host, "0.0.0.0", "{role}");
                for (probe, path) in
                    [("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/health")]
                {
                    let probed = &container[probe]["httpGet"]["path"];
                    if probe == "readinessProbe" && role == Role::Sender {
                        assert_eq!(*probed, json!(null), "a receiver serves without its sender");
                        continue;
                    }
                    assert_eq!(
                        (probed, probed_port(container, probe)?),
                        (&json!(path), u64::from(port)),
                        "{role} {probe}"
                    );
                }
                assert!(config.request.api_key.is_some(), "{role}: other Pods reach the port");
                assert!(role == Role::Proxy || config.link.secret.is_some(), "{role}");

                // The drain ends before the kubelet kills the process. 10 s is what the end takes after it.
                let grace =
                    pod["spec"]["terminationGracePeriodSeconds"].as_u64().context("no grace period")?;
                assert_eq!(grace, config.shutdown.drain.as_secs() + 15, "{role}");
                let end = config.shutdown.delay + config.shutdown.drain + Duration::from_secs(10);
                assert!(Duration::from_secs(grace) >= end && !config.shutdown.delay.is_zero(), "{role}");
            }
        }
    }
    assert_eq!(roles, [Role::Node, Role::Proxy, Role::Receiver, Role::Sender]);
    Ok(())
}

#[test]
fn processes_have_no_rights_that_they_do_not_need() -> Result<()> {
    for overlay in OVERLAYS {
        for (name, pod) in pods(overlay)? {
            let spec = &pod["spec"];
            let of_pod = &spec["securityContext"];
            assert_eq!(of_pod["runAsNonRoot"], true, "{name}");
            assert!(of_pod["runAsUser"].as_u64().is_some_and(|user| user > 0), "{name}: {of_pod}");
            assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            assert_eq!(spec["serviceAccountName"], "baton", "{name}");
            let containers = list(&spec["containers"]);
            for container in containers {
                let expect = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                });
                assert_eq!(container["securityContext"], expect, "{name}");
            }
            // `cuda_ipc` and the proof that a process has ended need it.
            assert_eq!(spec["shareProcessNamespace"] == true, containers.len() > 1, "{name}");
        }
    }
    Ok(())
}

/// The nodes and the proxies look the nodes up in the headless Service, which has the addresses of all Pods, however many there are.
#[test]
fn nodes_and_proxies_find_the_nodes_in_the_headless_service() -> Result<()> {
    let objects = objects("nodes")?;
    let set = of_kind(&objects, "StatefulSet")[0];
    let scaler = of_kind(&objects, "HorizontalPodAutoscaler")[0];
    assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], set["metadata"]["name"]);
    assert_eq!(set["spec"]["replicas"], json!(null), "an apply would reset what the autoscaler has set");
    let service = text(&set["spec"]["serviceName"])?;
    let services = of_kind(&objects, "Service");
    let headless =
        services.iter().find(|object| object["metadata"]["name"] == *service).context("no service")?;
    assert_eq!(
        (&headless["spec"]["clusterIP"], &headless["spec"]["publishNotReadyAddresses"]),
        (&json!("None"), &json!(true))
    );
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let component = "app.kubernetes.io/component";
    assert_eq!(headless["spec"]["selector"][component], labels[component], "its addresses are the nodes");
    let container =
        |kind: &str| of_kind(&objects, kind)[0]["spec"]["template"]["spec"]["containers"][0].clone();
    let (node, proxy) = (config(&container("StatefulSet"))?, config(&container("Deployment"))?);
    for (config, port) in [(&node, node.link.port), (&proxy, node.http.port)] {
        assert_eq!(config.fleet.dns, Some(format!("{service}:{port}")), "{}", config.role);
        assert!(list(&headless["spec"]["ports"]).iter().any(|known| known["port"] == port), "{port}");
    }
    // Two sessions with each other node.
    let most = scaler["spec"]["maxReplicas"].as_u64().context("no maxReplicas")?;
    assert!(2 * (most - 1) <= u64::from(node.link.sessions), "{most} nodes");
    assert_eq!(node.http.advertise.map(|address| address.port()), Some(node.http.port));

    let pool = self::objects("inference-pool")?;
    let pool = of_kind(&pool, "InferencePool")[0]["spec"].clone();
    assert_eq!(pool["targetPorts"], json!([{ "number": node.http.port }]));
    let name = "llm-d.ai/inference-serving";
    assert_eq!((&pool["selector"]["matchLabels"][name], &labels[name]), (&json!("true"), &json!("true")));
    Ok(())
}

/// A selector that names no Pod would leave a Service without endpoints, and a budget or a policy without effect.
#[test]
fn every_selector_selects_pods() -> Result<()> {
    for overlay in OVERLAYS {
        let objects = objects(overlay)?;
        let pods: Vec<Value> =
            pods(overlay)?.into_iter().map(|(_, pod)| pod["metadata"]["labels"].clone()).collect();
        for object in &objects {
            let spec = &object["spec"];
            let selector = if object["kind"] == "Service" {
                &spec["selector"]
            } else {
                &spec["selector"]["matchLabels"]
            };
            let Some(selector) = selector.as_object() else { continue };
            // Kustomize adds this label of the base to every Pod.
            let has = |labels: &Value| {
                selector
                    .iter()
                    .all(|(name, value)| name == "app.kubernetes.io/name" || labels[name] == *value)
            };
            assert_eq!(selector["app.kubernetes.io/name"], "baton", "{object}");
            assert_eq!(pods.iter().filter(|labels| has(labels)).count(), 1, "{}", object["metadata"]["name"]);
        }
    }
    Ok(())
}
