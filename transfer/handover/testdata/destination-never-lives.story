# source
- offer
Offer
- send-offer
> offer
> entry netns/state
- enter-offered
- enter-running
- begin
Begin
- send-build
> build
- precopy
Precopy ["files/big"]
> entry files/big
- enter-frozen
- freeze
Freeze
> entry checkpoint/pages.img
- send-prepare
> prepare
- keep
Keep
- enter-released
- send-released
> released
Held
> entry held
- ask
> query
> query
> query
> query
> query
> query
> query
> query
> query
> query

*handover.InDoubtError: migrate: it is not known whether the service lives on the destination: the destination can't bring it to life: out of luck
the copy here is frozen and mute since 2000-01-01T00:00:00Z, and stays so
  hint: see to that on the destination, then run: nsmigrate recover ID (there, and here)
        if you are sure that the service lives there: nsmigrate recover --force-live ID (else no copy is left)
        if you are sure that it doesn't and never will: nsmigrate recover --force-abort ID (else two copies live)
the copy: stopped

# destination
- check
Store netns/state 5 "state"
Check {"what":"a service"}
- send-ready
> ready
- enter-agreed
- enter-building
- begin
Begin
- build
Build
- send-built
> built
- store
Store files/big -1 "what changes rarely"
- store
Store checkpoint/pages.img -1 "memory"
- prepare
Prepare {"images":1}
- enter-prepared
- send-prepared
> prepared
- enter-live
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer
- go-live
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
GoLive fails: out of luck
> answer

*handover.StuckError: migrate: the service is to live on this host, but could not be brought to life: out of luck
  hint: see to that, then run: nsmigrate recover ID
the copy: stopped
