//! Tensors that belong to a quantised weight: their names.

/// The use of a tensor that belongs to a weight or to the attention of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Companion {
    /// The scales of this weight.
    Scales(String),
    /// The scale of a matrix's inputs. Unused, because activations are not quantised.
    Inputs,
    /// The scale of queries, keys or values. Unused, because the KV cache is not quantised.
    Cache,
}

/// The names that the scales of a weight may have. The second one is a factor too, in spite of its name.
pub(super) fn scale_names(weight: &str) -> [String; 2] {
    ["_scale", "_scale_inv"].map(|end| format!("{weight}{end}"))
}

impl Companion {
    /// The use of the tensor `name`. `has` says whether the checkpoint has a tensor. `None` if the tensor belongs to no other one.
    pub(crate) fn of(name: &str, has: impl Fn(&str) -> bool) -> Option<Self> {
        let (module, last) = name.rsplit_once('.')?;
        let weight = format!("{module}.weight");
        match last {
            "weight_scale" | "weight_scale_inv" if has(&weight) => Some(Self::Scales(weight)),
            "input_scale" | "activation_scale" if has(&weight) => Some(Self::Inputs),
            // Beside a projection, or beside the projections.
            "output_scale" | "q_scale" | "k_scale" | "v_scale" if has(&weight) => Some(Self::Cache),
            "q_scale" | "k_scale" | "v_scale" | "kv_scale" => {
                let attention = module.strip_suffix(".attn").unwrap_or(module);
                has(&format!("{attention}.k_proj.weight")).then_some(Self::Cache)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_companion_has_the_weight_that_it_belongs_to() {
        let has = |name: &str| ["a.k_proj.weight", "a.o_proj.weight", "m.up.weight"].contains(&name);
        let check =
            |name: &str, expect: Option<Companion>| assert_eq!(Companion::of(name, has), expect, "{name}");
        let scales = |weight: &str| Some(Companion::Scales(weight.to_owned()));
        check("m.up.weight_scale", scales("m.up.weight"));
        check("a.k_proj.weight_scale_inv", scales("a.k_proj.weight"));
        check("m.down.weight_scale", None);
        check("m.up.weight", None);
        check("m.up.weight_zero_point", None);
        check("weight_scale", None);
        check("m.up.input_scale", Some(Companion::Inputs));
        check("m.up.activation_scale", Some(Companion::Inputs));
        check("m.down.input_scale", None);
        for name in ["a.k_proj.output_scale", "a.k_proj.k_scale", "a.k_scale", "a.attn.v_scale", "a.kv_scale"]
        {
            check(name, Some(Companion::Cache));
        }
        check("m.k_scale", None);
        check("m.down.output_scale", None);
    }

    #[test]
    fn the_names_of_scales_are_companions() {
        for name in scale_names("m.up.weight") {
            assert_eq!(Companion::of(&name, |_| true), Some(Companion::Scales("m.up.weight".to_owned())));
        }
    }
}
