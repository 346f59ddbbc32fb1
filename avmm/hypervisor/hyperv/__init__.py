"""The enlightened interface: what a guest that knows Hyper-V finds in CPUID, MSRs and hypercalls."""
