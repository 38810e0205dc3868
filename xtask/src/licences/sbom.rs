//! The SBOM: the parts of the program in CycloneDX's format, version 1.5.

use serde_json::{Value, json};

use super::parts::ShippedPart;

/// The document. It has no time and no serial number, so that equal sources give equal documents.
pub(super) fn document(parts: &[ShippedPart]) -> Value {
    let program = parts.iter().find(|part| part.name == "runtime");
    let others = || parts.iter().filter(|part| part.name != "runtime");
    let root = "pkg:generic/baton";
    let reference = format!("{root}@{}", env!("CARGO_PKG_VERSION"));
    // What no crate uses belongs to the program itself: the standard library and the wheels.
    let direct = program.into_iter().flat_map(|part| part.uses.iter());
    let beside = others().filter(|part| !part.purl.starts_with("pkg:cargo/")).map(|part| &part.purl);
    let mut dependencies = vec![json!({"ref": reference, "dependsOn": sorted(direct.chain(beside))})];
    dependencies
        .extend(others().map(|part| json!({"ref": part.purl, "dependsOn": sorted(part.uses.iter())})));
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": "baton",
                "version": env!("CARGO_PKG_VERSION"),
                "purl": reference,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": others().map(component).collect::<Vec<_>>(),
        "dependencies": dependencies,
    })
}

fn sorted<'a>(references: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut references: Vec<&String> = references.collect();
    references.sort();
    references.dedup();
    references
}

fn component(part: &ShippedPart) -> Value {
    let ShippedPart { name, version, purl, licence, repository, sha256, .. } = part;
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "scope": "required",
        "licenses": [licence_choice(licence)],
        "purl": purl,
    });
    if let Some(sha256) = sha256 {
        component["hashes"] = json!([{"alg": "SHA-256", "content": sha256}]);
    }
    if let Some(url) = repository {
        component["externalReferences"] = json!([{"type": "vcs", "url": url}]);
    }
    component
}

/// One licence, or an expression of several.
fn licence_choice(licence: &str) -> Value {
    if licence.starts_with("LicenseRef-") {
        json!({"license": {"name": licence}})
    } else if licence.contains(' ') {
        json!({"expression": licence})
    } else {
        json!({"license": {"id": licence}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, licence: &str, uses: &[&str]) -> ShippedPart {
        ShippedPart {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            purl: format!("pkg:cargo/{name}@1.0.0"),
            licence: licence.to_owned(),
            uses: uses.iter().map(|name| format!("pkg:cargo/{name}@1.0.0")).collect(),
            ..ShippedPart::default()
        }
    }

    #[test]
    fn every_reference_names_a_component() {
        let library =
            ShippedPart { purl: "pkg:generic/rust-std@1".to_owned(), ..part("rust-std", "MIT", &[]) };
        let hashed = ShippedPart { sha256: Some("ab".to_owned()), ..part("a", "MIT OR ISC", &["b"]) };
        let nvidia = part("b", "LicenseRef-NVIDIA-Proprietary", &[]);
        let document = document(&[part("runtime", "Apache-2.0", &["a"]), hashed, nvidia, library]);
        assert_eq!((&document["bomFormat"], &document["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
        let components = document["components"].as_array().unwrap();
        let names: Vec<&Value> = components.iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["a", "b", "rust-std"]);
        assert_eq!(components[0]["hashes"][0]["content"], "ab");
        assert_eq!(components[0]["licenses"][0], json!({"expression": "MIT OR ISC"}));
        assert_eq!(components[1]["licenses"][0]["license"]["name"], "LicenseRef-NVIDIA-Proprietary");
        let root = &document["metadata"]["component"]["bom-ref"];
        let known: Vec<&Value> = components.iter().map(|one| &one["bom-ref"]).chain([root]).collect();
        let dependencies = document["dependencies"].as_array().unwrap();
        assert_eq!(dependencies[0]["dependsOn"], json!(["pkg:cargo/a@1.0.0", "pkg:generic/rust-std@1"]));
        assert_eq!(dependencies.len(), known.len());
        for one in dependencies {
            assert!(known.contains(&&one["ref"]));
            assert!(one["dependsOn"].as_array().unwrap().iter().all(|used| known.contains(&used)), "{one}");
        }
    }
}
