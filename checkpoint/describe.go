package checkpoint

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Interface is what an image's description says of a network interface.
type Interface struct {
	Name     string
	MAC      string
	Prefixes []netip.Prefix
}

// The files that checkpointctl(1) reads, in podman's shape: see lib/metadata.go of checkpointctl 1.4, and StatusBlock
// in go.podman.io/common for the network.
type (
	containerConfig struct {
		ID             string    `json:"id"`
		Name           string    `json:"name"`
		RootfsImage    string    `json:"rootfsImageName"`
		Runtime        string    `json:"runtime"`
		CreatedTime    time.Time `json:"createdTime"`
		CheckpointedAt time.Time `json:"checkpointedTime"`
	}
	containerSpec struct {
		OCIVersion  string            `json:"ociVersion"`
		Hostname    string            `json:"hostname,omitempty"`
		Process     *containerProcess `json:"process,omitempty"`
		Annotations map[string]string `json:"annotations"`
	}
	containerProcess struct {
		Args []string `json:"args"`
		Cwd  string   `json:"cwd"`
	}
	networkStatus struct {
		Interfaces map[string]networkInterface `json:"interfaces"`
	}
	networkInterface struct {
		Subnets []networkSubnet `json:"subnets"`
		MAC     string          `json:"mac_address"`
	}
	networkSubnet struct {
		Prefix netip.Prefix `json:"ipnet"`
	}
)

// Describe returns the files, by entry name, through which checkpointctl(1) shows an image as a container: the
// namespace's name as the container's, the first tree's command as the container's image. They are for people;
// nothing of ours reads them.
func Describe(m *Manifest, interfaces []Interface) (map[string][]byte, error) {
	name := m.Target.NetNS
	config := containerConfig{
		ID:             m.ID,
		Runtime:        "nsmigrate",
		CreatedTime:    m.Created,
		CheckpointedAt: m.Created,
	}
	spec := containerSpec{
		OCIVersion: "1.0.0",
		Hostname:   m.Host.Name,
		// checkpointctl knows three managers; files of podman's shape are shown as podman's.
		Annotations: map[string]string{"io.container.manager": "libpod"},
	}
	if len(m.Trees) > 0 {
		t := m.Trees[0]
		name = cmp.Or(name, fmt.Sprintf("pid %d", t.HostRoot))
		config.RootfsImage = strings.Join(t.Command, " ")
		spec.Process = &containerProcess{Args: t.Command, Cwd: t.Cwd}
	}
	config.Name = name

	status := networkStatus{Interfaces: make(map[string]networkInterface)}
	for _, i := range interfaces {
		n := networkInterface{MAC: i.MAC}
		for _, p := range i.Prefixes {
			n.Subnets = append(n.Subnets, networkSubnet{p})
		}
		status.Interfaces[i.Name] = n
	}
	files := make(map[string][]byte)
	for entry, v := range map[string]any{
		ConfigFile:  config,
		SpecFile:    spec,
		NetworkFile: map[string]networkStatus{name: status},
	} {
		data, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("describe image: %s: %w", entry, err)
		}
		files[entry] = append(data, '\n')
	}
	return files, nil
}
