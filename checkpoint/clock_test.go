package checkpoint

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClock(nil)
		c.Phase("one", false)
		time.Sleep(time.Second)
		c.Phase("two", true)
		time.Sleep(2 * time.Second)
		c.Stop()
		time.Sleep(time.Second)
		list := c.Phases()
		if len(list) != 2 || list[0].Duration != time.Second || list[1].Duration != 2*time.Second {
			t.Errorf("phases when stopped: %+v", list)
		}
		c.Phase("three", false)
		time.Sleep(time.Second)
		list = c.Phases()
		if len(list) != 3 || list[1].Duration != 2*time.Second || list[2].Duration != time.Second || list[2].Start != 4*time.Second {
			t.Errorf("phases when it runs again: %+v", list)
		}
	})
}
