package blackout

import "testing"

func TestSNMPValue(t *testing.T) {
	const text = "Ip: Forwarding OutRsts\nIp: 1 99\nTcp: RtoMin OutRsts InErrs\nTcp: 200 7 0\n"
	if n, err := snmpValue(text, "Tcp", "OutRsts"); err != nil || n != 7 {
		t.Errorf("%d, %v", n, err)
	}
	for _, text := range []string{"", "Tcp: OutRsts\n", "Tcp: OutRsts\nTcp:\n", "Tcp: RtoMin\nTcp: 200\n"} {
		if n, err := snmpValue(text, "Tcp", "OutRsts"); err == nil {
			t.Errorf("%d from %q", n, text)
		}
	}
}
