"""Storage over VMBus: SCSI disks, and the StorVSP server that a guest's storvsc driver talks to."""
